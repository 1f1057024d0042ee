"""What a low-rank adapter is: of a layer with weight W (m x n) the pair A (m x r), B (n x r) with dW = A B'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class LoRAPair(NamedTuple):
    up: Tensor  # A, (m, r): lora_up.weight
    basis: Tensor  # B, (n, r): lora_down.weight transposed


Concept = Mapping[str, LoRAPair]


def concat_bases(concepts: Iterable[Concept], layer: str) -> Tensor:
    """[B_1, B_2, ...] of one layer, (n, R): R is the total rank of the concepts that have the layer; one must."""
    return torch.cat([concept[layer].basis for concept in concepts if layer in concept], 1)
