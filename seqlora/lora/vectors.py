"""Trigger vectors as text, in the header of a concept file, and as an ordinary embedding file.

In the header, because loaders of LoRAs complain of tensors that they do not know, and never of a header.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .types import Vectors

KEY = "seqlora.trigger_vectors"
MOST = 64  # vectors for one encoder; more is nothing that we wrote
SINGLE = "emb_params"  # the one tensor of an embedding for models with one text encoder, as programs know it


def pack(vectors: Vectors) -> str:
    return base64.b64encode(save({name: own.float().contiguous() for name, own in vectors.items()})).decode()


def unpack(text: str) -> dict[str, Tensor]:
    """Raises ValueError for anything that `pack` did not write."""
    try:
        vectors = {name: own.clone() for name, own in load(base64.b64decode(text, validate=True)).items()}
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"no vectors ({error})") from error
    for name, own in vectors.items():
        if own.dtype != torch.float32 or own.ndim != 2 or not 0 < len(own) <= MOST or not own.isfinite().all():
            raise ValueError(f"no vectors for {name}")
    return vectors


def to_embedding(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a textual-inversion embedding: for several text encoders under their names (`clip_l`, `clip_g`), as SDXL's
    have them; for one under the name that those of SD 1.x have."""
    named = vectors if len(vectors) > 1 else dict(zip([SINGLE], vectors.values(), strict=True))
    return {name: own.float().clone(memory_format=torch.contiguous_format) for name, own in named.items()}
