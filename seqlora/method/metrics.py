"""How much concepts get in each other's way. All from the adapters and the stored moments; no forward runs.

Reports sum over layers before they divide: a ratio per layer is ruled by layers in which nothing happens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lora.types import Concept, concat_bases
from .moments import Moments


def basis_error(concepts: Sequence[Concept]) -> tuple[float, float]:
    """(max |B_i'B_j| over pairs i != j, max |B_i'B_i - I|) over all layers."""
    across = within = 0.0
    for layer in concepts[0]:
        B = concat_bases(concepts, layer).double()
        gram = B.mT @ B - torch.eye(B.shape[1], dtype=torch.float64)
        start = 0
        for concept in concepts:
            stop = start + concept[layer].basis.shape[1]
            within = max(within, float(gram[start:stop, start:stop].abs().max()))
            gram[start:stop, start:stop] = 0
            start = stop
        across = max(across, float(gram.abs().max()))
    return across, within


def overlap(concepts: Sequence[Concept]) -> Tensor:
    """(t, t): sum over layers of ||B_i'B_j||^2, divided by that of i with itself."""
    total = sum(overlap_in(concepts, layer) for layer in concepts[0])
    assert isinstance(total, Tensor)
    return total / total.diagonal()[:, None]


def overlap_in(concepts: Sequence[Concept], layer: str) -> Tensor:
    """(t, t): ||B_i'B_j||^2 of one layer."""
    B = _side_by_side([concept[layer].basis for concept in concepts])
    flat = B.movedim(0, 1).flatten(1)
    count = len(concepts)
    return (flat.mT @ flat).square().reshape(count, B.shape[2], count, B.shape[2]).sum((1, 3))


def crosstalk(concepts: Sequence[Concept], moments: Sequence[Moments], prior: Moments | None = None) -> Tensor:
    """(t, t): ||A_i B_i' X_j||^2 over ||A_j B_j' X_j||^2, each summed over layers; the diagonal is 1.

    With the base model's own moments, in what its output feels of it: tr(Gamma A_i B_i' C_j B_i A_i').
    """
    energy = sum(crosstalk_in(concepts, moments, layer, prior) for layer in concepts[0])
    assert isinstance(energy, Tensor)
    return energy / energy.diagonal()[None, :].clamp(min=1e-30)


def crosstalk_in(concepts: Sequence[Concept], moments: Sequence[Moments], layer: str, prior: Moments | None = None) -> Tensor:
    """(t, t): ||A_i B_i' X_j||^2 of one layer."""
    A, B = (_side_by_side([concept[layer][part] for concept in concepts]) for part in (0, 1))
    gram = A.mT @ A if prior is None else prior.output_curvature[layer].energy(A)
    return torch.stack([(gram * own[layer].energy(B)).sum((1, 2)) for own in moments], 1)


def _side_by_side(matrices: Sequence[Tensor]) -> Tensor:
    """(t, n, r), narrower ones filled up with zero columns."""
    widest = max(matrix.shape[1] for matrix in matrices)
    return torch.stack([torch.nn.functional.pad(matrix.double(), (0, widest - matrix.shape[1])) for matrix in matrices])


def captured_energy(concept: Concept, moments: Moments) -> float:
    """tr(B'CB) / tr(C), each summed over layers: how much of what the concept's layers see its basis can act on."""
    inside = whole = 0.0
    for layer, (_, B) in concept.items():
        inside += float(moments[layer].energy(B).trace())
        whole += float(moments[layer].diagonal.double().sum())
    return inside / whole


def change_norm(concept: Concept) -> float:
    """||dW||_F over all layers."""
    total = sum(float((A.double().mT @ A.double() * (B.double().mT @ B.double())).sum()) for A, B in concept.values())
    return total**0.5
