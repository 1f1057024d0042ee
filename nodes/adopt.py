"""The node that makes a LoRA made elsewhere a concept."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io, ui

from ..seqlora.settings import Settings
from ..seqlora.training.request import TrainingRequest, check_words
from ..seqlora.training.result import describe_result
from ..seqlora.training.train import train_steps
from . import host
from .library import LibraryHandle, LibraryType, tell_changed
from .train import summary


class AdoptLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_AdoptLoRA",
            display_name="Adopt LoRA",
            category="SeqLoRA/train",
            description="Makes a LoRA that you have a concept of a library, so that it can be used together with every other "
            "concept there. Its pictures are not needed: the model draws with the LoRA on, and the concept is taught to "
            "predict the same. Queueing the same again finds the finished concept.",
            search_aliases=["convert lora", "import lora", "lora to concept", "distill lora", "merge loras"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRA."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model, without the LoRA."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                LibraryType.Input("library", tooltip="The library that the concept goes into."),
                io.Combo.Input(
                    "lora",
                    options=host.lora_names(),
                    tooltip="A LoRA for this model, of any kind that ComfyUI loads (LoHa, LoKr and DoRA too).",
                ),
                io.String.Input("concept_name", default="", tooltip="What the concept is called in the library."),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="The word that the LoRA was made to listen to; so does the concept.",
                ),
                io.String.Input(
                    "class_word", default="", tooltip="What kind of thing it is, such as 'dog' or 'watercolor style'."
                ),
                io.Boolean.Input(
                    "fast",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="The best fit in closed form, without training: much sooner.",
                ),
            ],
            outputs=[
                LibraryType.Output("library", tooltip="The library with the new concept, for the next node."),
                io.String.Output("report", tooltip="What was adopted, how much of it was kept, and the figures, as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        library: LibraryHandle,
        lora: str,
        concept_name: str,
        trigger: str,
        class_word: str,
        fast: bool = False,
    ) -> io.NodeOutput:
        opened, words = library.open(), check_words(TrainingRequest(concept_name, trigger, class_word))
        with host.training_model(model, clip, vae, host.has_accelerator()) as pupil:
            adoption = host.adopted_lora(model, clip, vae, lora, fast)
            taught = host.run_with_progress(train_steps(opened, words, Settings(), pupil, adoption=adoption))
        tell_changed(taught.library.path.name)
        told = json.dumps(describe_result(taught), indent=2, ensure_ascii=False)
        return io.NodeOutput(LibraryHandle.of(taught.library), told, ui=ui.PreviewText(summary(taught)))

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **_: object) -> str:
        """Another one where the file was replaced by another of its name."""
        return host.lora_state(lora) if lora is not None else ""


NODES = [AdoptLoRA]
