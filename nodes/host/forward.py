"""A composed adapter beside the weights: what it adds is added to its layers' outputs, for the time of each pass.

A wrapper around the model's pass puts hooks on the layers and takes them off again. So the user's MODEL is never left patched,
clones know nothing of each other, and it does not matter how, when or where the host loads the weights, nor in what format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.patcher_extension
import comfy.utils
import torch
from torch import Tensor, nn

from ...seqlora.lora.attach import Gate, added
from ...seqlora.lora.types import LoRAPair
from .regions import Attention, Regions, check_model, tokens_of

KEY = "seqlora"
OVERRIDE = "optimized_attention_override"


def run_beside(model: Any, pairs: Mapping[str, LoRAPair], regions: Regions | None = None) -> Any:
    """A clone of MODEL that adds these pairs, by path of their module in the host's model, to their layers' outputs.

    With regions, each token gets its share of each concept and sees what it is to see; see `check_model`.
    """
    if regions is not None:
        check_model(model.model.diffusion_model)
    clone, adapter = model.clone(), ForwardAdapter(pairs, regions)
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY, adapter)
    if hasattr(model.model.diffusion_model, "preprocess_text_embeds"):  # Anima: layers that run before any pass
        clone.add_object_patch("extra_conds", adapter.before_passes(clone.model, clone.get_model_object("extra_conds")))
    clone.add_callback_with_key(comfy.patcher_extension.CallbacksMP.ON_CLEANUP, KEY, adapter.forget)
    return clone


class ForwardAdapter:
    """The wrapper: `pairs` on the CPU, and while the model samples what is derived of them beside it."""

    def __init__(self, pairs: Mapping[str, LoRAPair], regions: Regions | None):
        self.pairs, self.regions = pairs, regions
        self._kept: dict[Any, Any] = {}

    def __call__(
        self, executor: Any, x: Tensor, t: Tensor, concat: Any, text: Any, control: Any, options: dict, **kwargs: Any
    ) -> Tensor:
        """Arguments are those of the host's `apply_model`."""
        model = executor.class_obj  # with several GPUs each has a model of its own
        device, dtype = x.device, model.get_dtype_inference()
        layers = {path: comfy.utils.get_attr(model, path) for path in self.pairs}
        pairs, gate = self._keep(self._copies, device, dtype), None
        if self.regions is not None:
            size, override = tuple(x.shape[2:]), options.get(OVERRIDE)
            gate, attention = self._keep(self._in_place, device, dtype, model, size, text.shape[1], override)
            options = {**options, OVERRIDE: attention}
        with added(layers, pairs, gate):
            return executor(x, t, concat, text, control, options, **kwargs)

    def before_passes(self, model: Any, extra_conds: Callable[..., Any]) -> Callable[..., Any]:
        """The model's own preparation of what it is told, with the adapter on the layers that this runs."""

        def with_adapter(**told: Any) -> Any:
            layers = {path: comfy.utils.get_attr(model, path) for path in self.pairs}
            with added(layers, self._keep(self._copies, told["device"], model.get_dtype_inference()), None):
                return extra_conds(**told)

        return with_adapter

    def _keep(self, make: Any, *key: Any) -> Any:
        known = (make.__name__, *(id(part) if isinstance(part, nn.Module) else part for part in key))
        if known not in self._kept:
            self._kept[known] = make(*key)
        return self._kept[known]

    def _copies(self, device: torch.device, dtype: torch.dtype) -> dict[str, LoRAPair]:
        return {path: LoRAPair(up.to(device, dtype), basis.to(device, dtype)) for path, (up, basis) in self.pairs.items()}

    def _in_place(
        self, device: torch.device, dtype: torch.dtype, model: Any, size: tuple[int, ...], text: int, before: Any
    ) -> tuple[Gate, Attention]:
        assert self.regions is not None
        tokens = tokens_of(self.regions.plan, model.diffusion_model, (1, 1, *size), text)
        owners, shares = self.regions.owners, {}

        def gate(path: str, x: Tensor) -> Tensor:
            known = x.shape[-2], tuple(owners[path])
            if known not in shares:
                shares[known] = tokens.shares(known[0])[:, list(known[1])].to(device, dtype)
            return shares[known]

        return gate, Attention(tokens, device, before)

    def forget(self, patcher: Any = None) -> None:
        """Sampling is over: the copies go."""
        self._kept.clear()
