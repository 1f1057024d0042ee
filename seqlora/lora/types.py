"""What a low-rank adapter is: of a layer with weight W (m x n) the pair A (m x r), B (n x r) with dW = A B'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Pair(NamedTuple):
    A: Tensor  # coefficients, (m, r): lora_up
    B: Tensor  # basis, (n, r): transposed lora_down


Concept = Mapping[str, Pair]
