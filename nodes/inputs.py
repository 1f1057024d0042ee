"""Inputs of nodes that are settings: name, default, bounds and help are the setting's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy_api.latest import io

from ..seqlora.settings import Option


def option_inputs(options: Iterable[Option], optional: bool = True) -> list[Any]:
    """An input of a node for each; where optional a prompt names only what it wants otherwise."""
    return [_input(option, optional) for option in options]


def _input(option: Option, optional: bool) -> Any:
    about = {"default": option.default, "tooltip": option.help, "optional": optional}
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
