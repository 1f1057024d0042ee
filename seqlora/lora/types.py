"""What a low-rank adapter is: of a layer with weight W (m x n) the pair A (m x r), B (n x r) with dW = A B'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class LoRAPair(NamedTuple):
    up: Tensor  # A, (m, r): lora_up.weight
    basis: Tensor  # B, (n, r): lora_down.weight transposed


Concept = Mapping[str, LoRAPair]
