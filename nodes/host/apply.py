"""A composed adapter on the user's MODEL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.ldm.modules.attention
import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import comfy.weight_adapter

from ...seqlora.errors import SeqLoRAError
from ...seqlora.lora.types import LoRAPair


def apply_adapter(model: Any, composed: Mapping[str, LoRAPair], strength: float) -> Any:
    """A clone of MODEL with one LoRA patch per weight; what the host does with any LoRA, once.

    Raises SeqLoRAError naming the first layer that the model lacks or whose shape differs.
    """
    keys, shapes = comfy.lora.model_lora_keys_unet(model.model, {}), model.model.state_dict()
    patches: dict[Any, Any] = {}
    for layer, (A, B) in composed.items():
        target = keys.get(layer)
        weight = None if target is None else shapes[target if isinstance(target, str) else target[0]]
        if weight is None:
            raise SeqLoRAError(f"This model has no layer {layer}", "use the model that the library was taught on")
        rows = weight.shape[0] if isinstance(target, str) else target[1][2]
        if (rows, weight[0].numel()) != (A.shape[0], B.shape[0]):
            raise SeqLoRAError(
                f"Layer {layer} is {rows} x {weight[0].numel()} in this model and {A.shape[0]} x {B.shape[0]} in the library",
                "use the model that the library was taught on",
            )
        patches[target] = comfy.weight_adapter.LoRAAdapter(set(), (A, B.mT.contiguous(), None, None, None, None))
    patched = model.clone()
    missing = patches.keys() - set(patched.add_patches(patches, strength))
    if missing:
        raise SeqLoRAError(f"ComfyUI did not take the adapter of {next(iter(missing))}", "update ComfyUI and this node pack")
    return patched
