"""How much rank a concept gets in a layer."""

from __future__ import annotations


def layer_rank(width: int, cap: int, capacity: int) -> int:
    """The rank that lets `capacity` concepts be orthogonal within a quarter of a layer's input width, at most `cap`.

    The last concepts of a layer that is used up get the directions in which nothing happens; see docs/results-earlier.md.
    """
    return max(1, min(cap, width // (4 * capacity)))
