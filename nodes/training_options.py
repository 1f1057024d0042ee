"""The node with everything about a training that a newcomer need not choose."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from comfy_api.latest import io

from ..seqlora.settings import OPTIONS, RunOptions, settings_of
from .inputs import option_inputs

TrainingOptionsType = io.Custom("SEQLORA_TRAINING_OPTIONS")
# How it is run first: one looks for that more often than for how it learns.
RUN = [option for option in OPTIONS.values() if option.advanced and option.name in RunOptions.__dataclass_fields__]
LEARNING = [option for option in OPTIONS.values() if option.advanced and option not in RUN]
OPTIONS_ONLY = {option.name for option in RUN + LEARNING}


class TrainingOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_TrainingOptions",
            display_name="SeqLoRA Training Options",
            category="SeqLoRA/train",
            description="What Train SeqLoRA Concept decides by itself, for whoever wants it otherwise: how the concept is kept "
            "apart from others, what is saved and shown on the way, and whether a name is taught anew.",
            search_aliases=["advanced training", "train settings", "hyperparameters", "optimizer options", "lora method"],
            inputs=option_inputs(RUN + LEARNING),
            outputs=[TrainingOptionsType.Output("options", tooltip="Connect it to options of Train SeqLoRA Concept.")],
        )

    @classmethod
    def execute(cls, **chosen: Any) -> io.NodeOutput:
        settings_of(chosen)  # what cannot be is said here, before a model is loaded
        return io.NodeOutput(MappingProxyType(chosen))


NODES = [TrainingOptions]
