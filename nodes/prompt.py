"""The node that takes a prompt which names its concepts."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..seqlora.prompt.grammar import read_prompt
from ..seqlora.prompt.regions import Region
from ..seqlora.training.remarks import of_base, of_shared
from . import host
from .library import LibraryHandle, LibraryType, remark_on_triggers
from .regions import RegionsType, encode_with_regions


class ConceptPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_ConceptPrompt",
            display_name="Concept Prompt",
            category="SeqLoRA/apply",
            description="Takes a prompt that names its concepts with an at-sign: these are switched on, and their triggers and "
            "class words stand in their places. Concepts that the prompt does not name stay off.",
            search_aliases=["prompt", "text encode", "apply concepts", "trigger words", "mention", "load lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that the library was taught on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                LibraryType.Input("library", tooltip="The library with the concepts."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip='The prompt. @rex names a concept, @"red kettle" too, @rex:0.8 gives it a strength; a trigger that '
                    "is written out switches its concept on as well. \\@ is a plain sign.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What is not wanted. Concepts can be named here too, but this switches none on.",
                ),
                RegionsType.Input(
                    "regions",
                    optional=True,
                    tooltip="Places in the picture for concepts, from Concept Region; drawn in one pass.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the concepts that the prompt names; as it came where it names none."),
                io.Conditioning.Output("positive", tooltip="The prompt, encoded."),
                io.Conditioning.Output("negative", tooltip="What is not wanted, encoded."),
                io.String.Output("concepts", tooltip="What was switched on, a line each: name and strength."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, library: LibraryHandle, text: str, negative: str, regions: tuple[Region, ...] = ()
    ) -> io.NodeOutput:
        opened = library.open()
        prompt, against = (read_prompt(said, opened.concepts, weights=True) for said in (text, negative))
        active = {name: strength for name, strength in prompt.strengths.items() if strength}
        remark = of_base(library.name, opened.base, *host.fingerprints(model)) if active or regions else ""
        if regions:
            model, *encoded, active = encode_with_regions(model, clip, opened, prompt, against.text, regions)
        else:
            if active:
                model = host.apply_adapter(model, opened.compose(active), 1.0)
            reads = host.with_own_words(clip, opened.triggers(active))
            encoded = [reads.encode_from_tokens_scheduled(reads.tokenize(said)) for said in (prompt.text, against.text)]
        concepts = "\n".join(f"{name}: {strength:g}" for name, strength in active.items())
        remarks = (remark, of_shared([opened.find(name) for name in active]), remark_on_triggers(clip, opened.triggers(active)))
        shown = "\n".join(filter(None, (concepts or "no concept is named", prompt.text, *remarks)))
        host.say(cls.hidden.unique_id, shown)
        return io.NodeOutput(model, *encoded, concepts, ui=ui.PreviewText(shown))


NODES = [ConceptPrompt]
