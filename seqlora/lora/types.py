"""What a concept is made of.

Of a layer with weight W (m x n) a low-rank adapter is the pair A (m x r), B (n x r) with dW = A B'. Beside its adapters a
concept may have vectors of its own in the place of its trigger's, for each text encoder that takes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class LoRAPair(NamedTuple):
    up: Tensor  # A, (m, r): lora_up.weight
    basis: Tensor  # B, (n, r): lora_down.weight transposed


Concept = Mapping[str, LoRAPair]
Vectors = Mapping[str, Tensor]  # text encoder ("clip_l") -> (k, width), in the place of a word's own
Triggers = Mapping[str, Vectors]  # by the words that they stand for


def concat_bases(concepts: Iterable[Concept], layer: str) -> Tensor:
    """[B_1, B_2, ...] of one layer, (n, R): R is the total rank of the concepts that have the layer; one must."""
    return torch.cat([concept[layer].basis for concept in concepts if layer in concept], 1)
