"""A cheap hash of weights in which every tensor counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

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
    return b"".join(_some(part) for part in plain_parts(tensor) if part.numel() and not part.is_meta)


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """What a tensor is made of: itself, or the packed values and scales of a quantised one. Unpacking a whole model to look at
    some of its values would take minutes."""
    part = tensor.detach()
    if hasattr(part, "__tensor_flatten__"):
        for name in part.__tensor_flatten__()[0]:
            yield from plain_parts(getattr(part, name))
    else:
        yield part.as_subclass(Tensor)


def _some(part: Tensor) -> bytes:
    flat = part.reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat)), dtype=torch.float64, device=flat.device).round().long()
    return flat[places].float().cpu().numpy().tobytes()
