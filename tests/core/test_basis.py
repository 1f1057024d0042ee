"""Starting bases against dense eigenproblems in the null space of F, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.linalg import cholesky, eigh, qr, svd

from seqlora.method.basis import RIDGE, contrastive_basis, pca_basis, random_basis
from seqlora.method.moments import Moment


def covariance(n: int, seed: int, rank: int | None = None) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank or n, generator=g, dtype=torch.float64) * (torch.arange(rank or n) + 1.0).rsqrt()
    return x @ x.mT


def moment(C: torch.Tensor) -> Moment:
    return Moment(C, C.diagonal().clone())


def span(n: int, p: int, seed: int = 9) -> torch.Tensor:
    return qr(torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0][:, :p]


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def assert_on_the_manifold(B, F):
    assert float((B.mT @ B - torch.eye(B.shape[1], dtype=B.dtype)).abs().max()) < 1e-12
    assert not F.shape[1] or float((F.mT @ B).abs().max()) < 1e-12


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 8),
    st.integers(0, 8),
    st.integers(1, 6),
    st.sampled_from(["contrastive", "pca", "random"]),
    st.integers(0, 999),
)
def test_every_start_is_on_the_manifold(r, p, spare, own_rank, start, seed):
    """Also where the moment has fewer directions than the basis, all of them may be taken, or nothing is left over."""
    n = r + p + spare
    F = span(n, p, seed)
    C, R = covariance(n, seed + 1, own_rank), covariance(n, seed + 2, own_rank)
    if start == "random":
        B = random_basis(n, r, F, rng())
    elif start == "pca":
        B = pca_basis(moment(C), r, F, rng())
    else:
        B = contrastive_basis(moment(C), moment(R), r, F, rng())
    assert B.shape == (n, r)
    assert_on_the_manifold(B, F)


@pytest.mark.parametrize("p", [0, 3, 12])
@pytest.mark.parametrize("r", [1, 4])
def test_contrastive_solves_the_generalised_eigenproblem(p, r):
    n = 24
    C, R, F = covariance(n, 1), covariance(n, 2), span(n, p)
    found = contrastive_basis(moment(C), moment(R), r, F, rng())

    free = svd(F, full_matrices=True)[0][:, p:]  # the null space of F'
    ridged = R + RIDGE * R.diagonal().mean() * torch.eye(n, dtype=R.dtype)
    lower = cholesky(free.mT @ ridged @ free)
    whitened = torch.linalg.solve(lower, free.mT @ C @ free)
    whitened = torch.linalg.solve(lower, whitened.mT)
    values, vectors = eigh((whitened + whitened.mT) / 2)
    best = qr(free @ torch.linalg.solve(lower.mT, vectors[:, -r:]))[0]

    torch.testing.assert_close(found @ found.mT, best @ best.mT, rtol=0, atol=1e-4)  # the same span
    quotient = torch.linalg.solve(found.mT @ ridged @ found, found.mT @ C @ found).trace()
    assert float(quotient) == pytest.approx(float(values[-r:].sum()), rel=1e-6)


@pytest.mark.parametrize("p", [0, 5])
def test_pca_holds_the_most_energy_of_the_complement(p):
    n, r = 24, 4
    C, F = covariance(n, 1), span(n, p)
    found = pca_basis(moment(C), r, F, rng())
    free = svd(F, full_matrices=True)[0][:, p:]
    values = torch.linalg.eigvalsh(free.mT @ C @ free)
    assert float((found.mT @ C @ found).trace()) == pytest.approx(float(values[-r:].sum()), rel=1e-8)


def test_contrastive_avoids_what_everything_shares():
    n = 16
    shared, own = span(n, 2).mT
    C = 100 * torch.outer(shared, shared) + torch.outer(own, own)
    R = 100 * torch.outer(shared, shared)
    F = torch.zeros(n, 0, dtype=torch.float64)
    assert abs(float(contrastive_basis(moment(C), moment(R), 1, F, rng())[:, 0] @ own)) > 0.99
    assert abs(float(pca_basis(moment(C), 1, F, rng())[:, 0] @ shared)) > 0.99


def test_a_sketched_moment_gives_nearly_the_same_basis():
    n, r = 400, 4
    g = torch.Generator().manual_seed(3)
    x = torch.randn(900, 30, generator=g, dtype=torch.float64) @ torch.randn(30, n, generator=g, dtype=torch.float64)
    from seqlora.method import moments

    C = x.mT @ x / 900
    sketched = Moment(C @ moments.test_matrix(n).double(), C.diagonal().clone())
    F = span(n, 8)
    exact, found = (pca_basis(c, r, F, rng()) for c in (moment(C), sketched))
    torch.testing.assert_close(found @ found.mT, exact @ exact.mT, rtol=0, atol=1e-4)
