"""The models that concepts are taught to."""

from __future__ import annotations

import types
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqlora.backends.model import HeadlessModel
from seqlora.demo.demo_model import DemoModel

from .mmdit import load_mmdit

LOADERS: dict[str, Callable[[], HeadlessModel]] = {"unet": DemoModel, "mmdit": load_mmdit}


def load(architecture: str) -> HeadlessModel:
    model = LOADERS[architecture]()
    convolve_in_bf16(model.network)
    return model


def convolve_in_bf16(network: nn.Module) -> None:
    """Frozen convolutions take half of a step on a CPU with bf16 matrix units, and a third of that in bf16."""
    if not torch.cpu._is_amx_tile_supported():
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)
            module.forward = types.MethodType(_convolve, module)  # type: ignore[method-assign]


def _convolve(self: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x.bfloat16(), self.weight, self.bias, self.stride, self.padding).float()
