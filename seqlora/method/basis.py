"""Where a concept's basis starts: contrastive, PCA or random, always inside the complement of earlier concepts.

Per layer, in float64: `earlier` is F (n, p) with orthonormal columns, the result B (n, r) is orthonormal with F'B = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .manifold import complement
from .moments import Moment

RIDGE = 0.1  # of the mean diagonal: without it the quotient picks directions that nothing uses


def orthonormal(columns: Tensor, earlier: Tensor, generator: torch.Generator) -> Tensor:
    """An orthonormal basis of the columns inside the complement; missing directions are filled at random."""
    columns = complement(columns, earlier)
    columns = columns / columns.norm(dim=0).clamp(min=1e-12)
    noise = torch.randn(columns.shape, generator=generator, dtype=torch.float64).to(columns)
    basis, _ = torch.linalg.qr(columns + 1e-5 * complement(noise, earlier))
    basis, _ = torch.linalg.qr(complement(basis, earlier))
    return basis


def random_basis(width: int, rank: int, earlier: Tensor, generator: torch.Generator) -> Tensor:
    columns = torch.randn(width, rank, generator=generator, dtype=torch.float64).to(earlier)
    return orthonormal(columns, earlier, generator)


def pca_basis(own: Moment, rank: int, earlier: Tensor, generator: torch.Generator) -> Tensor:
    """Top directions of P C P: the most energy of this concept, shared or not (InfLoRA's basis)."""
    factor, _ = own.factor()
    left, _, _ = torch.linalg.svd(complement(factor.to(earlier), earlier), full_matrices=False)
    return orthonormal(_widen(left, rank), earlier, generator)


def contrastive_basis(own: Moment, others: Moment, rank: int, earlier: Tensor, generator: torch.Generator) -> Tensor:
    """Top-r generalised eigenvectors of (P C P, R + eps I): much energy on this concept, little on everything else."""
    factor, _ = own.factor()
    apart, tail = others.factor()
    factor, apart, tail = factor.to(earlier), apart.to(earlier), tail.to(earlier)
    mean = others.diagonal.double().mean().to(earlier)
    diagonal = (tail + RIDGE * mean.clamp(min=1e-30))[:, None]
    # An earlier direction costs so much that no solution uses it: this restricts R to the complement.
    columns = torch.cat([apart, earlier * (1e8 * mean).sqrt()], dim=1)
    weighted = columns / diagonal
    core = torch.eye(columns.shape[1]).to(earlier) + columns.mT @ weighted
    inverse_times = factor / diagonal - weighted @ torch.linalg.solve(core, weighted.mT @ factor)
    quotient = factor.mT @ inverse_times
    _, vectors = torch.linalg.eigh((quotient + quotient.mT) / 2)
    return orthonormal(_widen(inverse_times @ vectors.flip(1), rank), earlier, generator)


def _widen(columns: Tensor, rank: int) -> Tensor:
    missing = max(0, rank - columns.shape[1])
    return torch.nn.functional.pad(columns[:, :rank], (0, missing))
