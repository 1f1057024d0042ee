"""The node with everything about a training that a newcomer need not choose."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from comfy_api.latest import io

from ..seqlora.settings import OPTIONS, Option, RunOptions, settings_of

TrainingOptionsType = io.Custom("SEQLORA_TRAINING_OPTIONS")
# How it is run first: one looks for that more often than for how it learns.
RUN = [option for option in OPTIONS.values() if option.advanced and option.name in RunOptions.__dataclass_fields__]
LEARNING = [option for option in OPTIONS.values() if option.advanced and option not in RUN]
OPTIONS_ONLY = {option.name for option in RUN + LEARNING}


def option_inputs(options: Iterable[Option]) -> list[Any]:
    """An input of a node for each, all optional: a prompt names only what it wants otherwise."""
    return [_input(option) for option in options]


def _input(option: Option) -> Any:
    about = {"default": option.default, "tooltip": option.help, "optional": True}
    bounds = {"min": option.least, "max": option.most, "step": option.step}
    if option.choices:
        return io.Combo.Input(option.name, options=list(option.choices), **about)
    if isinstance(option.default, bool):
        return io.Boolean.Input(option.name, **about)
    if isinstance(option.default, str):
        return io.String.Input(option.name, **about)
    if isinstance(option.default, float):
        return io.Float.Input(option.name, **about, **bounds, round=False)
    # Otherwise the editor would draw a new seed after each run, and so ask for another concept.
    fixed = {"control_after_generate": False} if option.name == "seed" else {}
    return io.Int.Input(option.name, **about, **bounds, **fixed)


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
