"""A cheap hash of weights in which every tensor counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

SAMPLES = 16  # values of a tensor, evenly spread over it


def weights_hash(tensors: Iterable[tuple[str, Tensor]], more: str = "") -> str:
    """Of names, shapes and a few values of each tensor, and of a text; in a time that their size does not change."""
    digest = hashlib.sha256(more.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode() + some_values(tensor))
    return digest.hexdigest()[:16]


def some_values(tensor: Tensor) -> bytes:
    """Nothing of a tensor that has no values, as on the meta device."""
    part = tensor.detach()
    if part.is_meta or not part.numel():
        return b""
    part = part.dequantize() if hasattr(part, "dequantize") and type(part) not in (Tensor, torch.nn.Parameter) else part
    flat = part.reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat)), dtype=torch.float64, device=flat.device).round().long()
    return flat[places].float().cpu().numpy().tobytes()
