"""LoRA files as they are written for three worlds: ComfyUI-native, kohya, diffusers/PEFT.

See layouts.py for the names of layers, read.py for what is read of files that were made elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SeqLoRAError
from .layouts import PREFIX, TRANSFORMER, native_to_diffusers
from .types import LoRAPair

UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"


def to_native(concept: Mapping[str, LoRAPair]) -> dict[str, Tensor]:
    """The tensors of a ComfyUI LoRA file: `<name>.lora_up.weight` A, `.lora_down.weight` B', `.alpha` r (fp32, 0-dim).

    As in every export here, each tensor is a contiguous copy of its own, as safetensors wants it.
    """
    out = {}
    for name, (a, b) in concept.items():
        out[name + UP] = _copy(a)
        out[name + DOWN] = _copy(b.T)
        out[name + ALPHA] = torch.tensor(float(a.shape[1]))
    return out


def to_kohya(concept: Mapping[str, LoRAPair], layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same in sd-scripts' names, `lora_unet_<path with _>`: diffusers' paths for SD 1.x and 2.x, native ones for the rest.
    sd-scripts has no names for diffusers' transformers; OneTrainer's are used there: `lora_transformer_<path with _>`.

    Raises SeqLoRAError as `native_to_diffusers` does.
    """
    if layout["family"] == "unet" and not layout["label_emb"]:
        concept = native_to_diffusers(concept, layout)
    return to_native({_kohya_name(name): pair for name, pair in concept.items()})


def _kohya_name(name: str) -> str:
    prefix = "lora_" if name.startswith(TRANSFORMER) else "lora_unet_"
    return prefix + name.removeprefix(PREFIX).replace(".", "_")


def to_diffusers(concept: Mapping[str, LoRAPair], layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names for diffusers' `load_lora_weights`, which ComfyUI's loader takes as well; B' is the down or A matrix, A the other.

    A transformer's are PEFT's, `transformer.<path>.lora_A.weight`. A UNet's are those from before PEFT, because ComfyUI's map
    has a UNet's attention under `processor` only. No alpha is written: the scale is 1 then. Raises SeqLoRAError as
    `native_to_diffusers` does.
    """
    unet = layout["family"] == "unet"
    out = {}
    for path, (up, basis) in native_to_diffusers(concept, layout).items():
        down_key, up_key = _before_peft(path) if unet else (f"{path}.lora_A.weight", f"{path}.lora_B.weight")
        prefix = "unet." if unet else "transformer."
        out[prefix + down_key], out[prefix + up_key] = _copy(basis.T), _copy(up)
    return out


def _before_peft(path: str) -> tuple[str, str]:
    """The names of a UNet's down and up matrix: `attn1.processor.to_q_lora.down.weight`, or `<path>.lora.down.weight`."""
    module, attention, layer = path.rpartition(".to_")
    stem = f"{module}.processor.to_{layer.removesuffix('.0')}_lora" if attention else f"{path}.lora"
    return f"{stem}.down.weight", f"{stem}.up.weight"


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def from_native(state_dict: Mapping[str, Tensor]) -> dict[str, LoRAPair]:
    """The concept in a state dict as `to_native` writes it. alpha / r goes into A where it is not 1; no alpha means 1.

    Raises SeqLoRAError naming the key for a key that is not a native LoRA key, a missing partner, or a wrong shape or alpha.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict.items():
        suffix = next((s for s in (UP, DOWN, ALPHA) if key.endswith(s)), None)
        if suffix is None or not key.startswith((PREFIX, TRANSFORMER)):
            raise SeqLoRAError(f"Key {key!r} is not a native LoRA key: it must be {PREFIX}<layer> with {UP}, {DOWN} or {ALPHA}")
        parts.setdefault(key.removesuffix(suffix), {})[suffix] = tensor
    return {name: _pair(name, part) for name, part in parts.items()}


def _pair(name: str, part: Mapping[str, Tensor]) -> LoRAPair:
    for suffix in (UP, DOWN):
        if suffix not in part:
            raise SeqLoRAError(f"Key '{name}{suffix}' is missing beside '{name}{next(iter(part))}'", "the file is incomplete")
    a, b = part[UP], part[DOWN].T if part[DOWN].ndim == 2 else part[DOWN]
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise SeqLoRAError(
            f"Key '{name}{UP}' is {tuple(a.shape)} and its {DOWN} {tuple(part[DOWN].shape)}", "expected (m, r) and (r, n)"
        )
    rank = a.shape[1]
    alpha = part.get(ALPHA, torch.tensor(float(rank)))
    if alpha.numel() != 1 or not math.isfinite(alpha.item()):
        raise SeqLoRAError(f"Key '{name}{ALPHA}' must be one finite number, but is {alpha.tolist()}")
    scale = alpha.item() / rank
    return LoRAPair(a if scale == 1 else a * scale, b)
