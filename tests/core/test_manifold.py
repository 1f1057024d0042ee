"""The manifold against linear algebra written the long way round, in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.linalg import lstsq, qr, svd

from seqlora.method.manifold import complement, retract, tangent


@st.composite
def problems(draw):
    """B (L, n, r), F (L, n, p) with some columns zero, G (L, n, r)."""
    layers, r = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    p = draw(st.integers(0, 6))
    n = r + p + draw(st.integers(0, 6))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    both = qr(torch.randn(layers, n, r + p, generator=g, dtype=torch.float64))[0]
    B, F = both[..., :r], both[..., r:]
    kept = torch.rand(layers, 1, p, generator=g) < 0.8
    return B, F * kept, torch.randn(layers, n, r, generator=g, dtype=torch.float64)


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def null_space(rows):
    """Orthonormal columns that span {x: rows x = 0}."""
    _, values, right = svd(rows, full_matrices=True)
    return right[int((values > 1e-9).sum()) :].mT


def identity_error(B):
    return float((B.mT @ B - torch.eye(B.shape[-1], dtype=B.dtype)).abs().max())


@settings(max_examples=40, deadline=None)
@given(problems())
def test_complement_is_least_squares_in_the_null_space(problem):
    _, F, G = problem
    for f, g, found in zip(F, G, complement(G, F), strict=True):
        free = null_space(f.mT)
        close(found, free @ lstsq(free, g, driver="gelsd").solution)
    close(complement(complement(G, F), F), complement(G, F))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_tangent_is_the_nearest_point_of_the_tangent_space(problem):
    B, F, G = problem
    found = tangent(G, B, F)
    close(F.mT @ found, torch.zeros_like(F.mT @ found))
    close(B.mT @ found, -(B.mT @ found).mT)
    close(tangent(found, B, F), found)
    for b, f, g, t in zip(B, F, G, found, strict=True):
        # The linear conditions F'Z = 0 and B'Z + Z'B = 0 as rows on the entries of Z; what is left of G is orthogonal to them.
        units = torch.eye(g.numel(), dtype=g.dtype).reshape(-1, *g.shape)
        skew = b.mT @ units
        conditions = torch.cat([(f.mT @ units).flatten(1), (skew + skew.mT).flatten(1)], 1).mT
        free = null_space(conditions)
        close(t.flatten(), free @ (free.mT @ g.flatten()))


@settings(max_examples=40, deadline=None)
@given(problems(), st.floats(0.01, 0.5))
def test_retraction(problem, length):
    B, F, G = problem
    close(retract(B, F), B)  # a fixed point
    point = B + length * tangent(G, B, F)
    found = retract(point, F)
    assert identity_error(found) < 1e-9
    close(F.mT @ found, torch.zeros_like(F.mT @ found))
    close(retract(found, F), found)
    Q, R = qr(point)  # the same Q by Householder once the signs agree
    close(found, Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :])


def test_retraction_agrees_with_the_tangent_to_first_order():
    g = torch.Generator().manual_seed(0)
    both = qr(torch.randn(2, 20, 9, generator=g, dtype=torch.float64))[0]
    B, F = both[..., :4], both[..., 4:]
    step = tangent(torch.randn(2, 20, 4, generator=g, dtype=torch.float64), B, F)
    errors = [float((retract(B + t * step, F) - B - t * step).norm()) for t in (1e-2, 1e-3)]
    assert errors[1] < errors[0] / 90  # falls with t squared


def test_fp32_stays_on_the_manifold_over_many_steps():
    g = torch.Generator().manual_seed(0)
    both = qr(torch.randn(4, 64, 56, generator=g))[0]
    B, F = both[..., :8], both[..., 8:]
    for _ in range(300):
        B = retract(B + 0.05 * tangent(torch.randn(B.shape, generator=g), B, F), F)
    assert identity_error(B) < 2e-6
    assert float((F.mT @ B).abs().max()) < 2e-6
