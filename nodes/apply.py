"""The node that puts any of a library's concepts into a model."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io

from ..seqlora.errors import SeqLoRAError
from ..seqlora.lora.compose import parse_selection
from ..seqlora.prompt.grammar import read_prompt
from ..seqlora.training.remarks import of_base, of_shared
from . import host
from .library import LibraryHandle, LibraryType, remark_on_triggers, triggers_of

MOST = 10.0  # strength, either way


class ApplyComposed(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_ApplyComposed",
            display_name="Apply Composed SeqLoRA",
            category="SeqLoRA/apply",
            description="Adds any concepts of a library to the model, all at once. Sampling is as fast as without them.",
            search_aliases=["load lora", "lora stack", "combine loras", "apply concepts", "compose concepts"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that the library was taught on."),
                LibraryType.Input("library", tooltip="The library with the concepts."),
                io.String.Input(
                    "concepts",
                    default="*",
                    multiline=True,
                    tooltip="Which concepts: a line each, 'name' or 'name: 0.8'. '*' is all of them, 'auto' those that the "
                    "connected prompt names; a line of its own changes one of these. Strength 0 leaves a concept out; '#' "
                    "starts a remark.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-MOST,
                    max=MOST,
                    step=0.05,
                    tooltip="Multiplies the strengths of all concepts. They were taught for 1.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The model's text encoder. Where concepts have learned vectors for their triggers, prompts need "
                    "the one that comes out of this node.",
                ),
                io.String.Input(
                    "prompt",
                    optional=True,
                    force_input=True,
                    tooltip="A prompt that names concepts with an at-sign, for the line 'auto'. Its text for the encoder comes "
                    "out below.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the concepts."),
                io.Clip.Output(tooltip="The text encoder, for which learned triggers mean what was learned."),
                io.String.Output("triggers", tooltip="One line for each concept in use: its name, trigger and class word."),
                io.String.Output("text", tooltip="The prompt with triggers and class words in place of names."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, library: LibraryHandle, concepts: str, strength: float, clip: Any = None, prompt: str | None = None
    ) -> io.NodeOutput:
        if not math.isfinite(strength):  # from another node; the widget has bounds
            raise SeqLoRAError(
                f"strength is {strength}, which is no number to multiply with", f"connect one from {-MOST:g} to {MOST:g}"
            )
        opened = library.open()
        said = None if prompt is None else read_prompt(prompt, opened.concepts, weights=True)
        selection = parse_selection(concepts, opened.names, said and said.strengths)
        records = [opened.find(name) for name in selection]
        triggers = triggers_of(records)
        if selection and strength:
            learned = opened.triggers(selection)
            missing = remark_on_triggers(clip, learned)
            remarks = (of_base(library.name, opened.base, *host.fingerprints(model)), of_shared(records), missing)
            if any(remarks):
                host.remark(cls.hidden.unique_id, " ".join(filter(None, remarks)))
            model = host.apply_adapter(model, opened.compose(selection), strength)
            clip = clip if clip is None else host.with_own_words(clip, learned)
        return io.NodeOutput(model, clip, triggers, said.text if said else "")


NODES = [ApplyComposed]
