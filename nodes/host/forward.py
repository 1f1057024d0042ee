"""A composed adapter beside the weights: what it adds is added to its layers' outputs, for the time of each pass.

A wrapper around the model's pass puts hooks on the layers and takes them off again. So the user's MODEL is never left patched,
clones know nothing of each other, and it does not matter how, when or where the host loads the weights, nor in what format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.patcher_extension
import comfy.utils
import torch
from torch import nn

from ...seqlora.lora.attach import added
from ...seqlora.lora.types import LoRAPair

KEY = "seqlora"


def run_beside(model: Any, pairs: Mapping[str, LoRAPair]) -> Any:
    """A clone of MODEL that adds these pairs, by path of their module in the host's model, to their layers' outputs."""
    clone, adapter = model.clone(), ForwardAdapter(pairs)
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY, adapter)
    clone.add_callback_with_key(comfy.patcher_extension.CallbacksMP.ON_CLEANUP, KEY, adapter.forget)
    return clone


class ForwardAdapter:
    """The wrapper: `pairs` on the CPU, and copies beside the model while it samples."""

    def __init__(self, pairs: Mapping[str, LoRAPair]):
        self.pairs = pairs
        self._copies: dict[tuple[torch.device, torch.dtype], dict[str, LoRAPair]] = {}

    def __call__(self, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        model = executor.class_obj  # with several GPUs each has a model of its own
        with added(self._layers(model), self._copy(x.device, model.get_dtype_inference())):
            return executor(x, *args, **kwargs)

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return {path: comfy.utils.get_attr(model, path) for path in self.pairs}

    def _copy(self, device: torch.device, dtype: torch.dtype) -> dict[str, LoRAPair]:
        if (device, dtype) not in self._copies:
            self._copies[device, dtype] = {
                path: LoRAPair(up.to(device, dtype), basis.to(device, dtype)) for path, (up, basis) in self.pairs.items()
            }
        return self._copies[device, dtype]

    def forget(self, patcher: Any = None) -> None:
        """Sampling is over: the copies go."""
        self._copies.clear()
