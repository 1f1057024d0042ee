"""The closed form of an adopted LoRA against the same minimum found by dense algebra, in float64."""

import pytest
import torch
from torch.linalg import cholesky, inv, svd

from seqlora.lora.types import LoRAPair
from seqlora.method.basis import RIDGE
from seqlora.method.moments import Moment, test_matrix
from seqlora.method.reduce import nearest_pair
from tests.core.test_basis import covariance, moment, rng, span


def change_of(m, n, rank):
    g = torch.Generator().manual_seed(3)
    return LoRAPair(torch.randn(m, rank, generator=g), torch.randn(n, rank, generator=g))


def dense_minimum(D, rank, F, C, R, weight):
    """The same by a basis of the complement and a Cholesky factor there."""
    n = len(C)
    Q = svd(torch.eye(n, dtype=torch.float64) - F @ F.T)[0][:, : n - F.shape[1]]
    mean = C.diagonal().mean() + weight * R.diagonal().mean()
    K = Q.T @ (C + weight * R + RIDGE * weight * mean * torch.eye(n)) @ Q
    root = cholesky(K)
    U, S, V = svd(D @ C @ Q @ inv(root).T, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ V[:rank] @ inv(root) @ Q.T


def assert_near(found, wanted):
    """Up to the 1e-5 with which `orthonormal` fills directions that are missing."""
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize("p", [0, 5])
@pytest.mark.parametrize("of_rank, rank", [(6, 3), (3, 3), (2, 4)])
@pytest.mark.parametrize("weight", [0.1, 3.0])
def test_it_is_the_minimum(p, of_rank, rank, weight):
    n, m = 24, 16
    F, C, R = span(n, p), covariance(n, 1), covariance(n, 2)
    change = change_of(m, n, of_rank)
    A, B = nearest_pair(change, rank, F, moment(C), moment(R), weight, rng())
    assert A.dtype == B.dtype == torch.float32 and A.shape == (m, rank) and B.shape == (n, rank)
    assert float((B.T @ B - torch.eye(rank)).abs().max()) < 1e-6 and (not p or float((F.float().T @ B).abs().max()) < 1e-6)
    assert_near((A @ B.T).double(), dense_minimum((change.up @ change.basis.T).double(), rank, F, C, R, weight))


def test_with_room_and_nothing_else_to_care_for_it_is_the_change_itself():
    change = change_of(16, 24, 3)
    A, B = nearest_pair(change, 4, span(24, 0), moment(covariance(24, 1)), moment(covariance(24, 2)), 1e-9, rng())
    assert_near(A @ B.T, change.up @ change.basis.T)


def test_sketched_moments_are_enough():
    """Above the exact width C is known as a factor and a diagonal; where it has a lower rank than the sketch, exactly."""
    n, m = 400, 8
    low = [covariance(n, seed, rank=20) for seed in (1, 2)]
    sketched = [Moment(C @ test_matrix(n).double(), C.diagonal().clone()) for C in low]
    change, F = change_of(m, n, 5), span(n, 7)
    A, B = nearest_pair(change, 3, F, *sketched, 0.5, rng())
    assert_near((A @ B.T).double(), dense_minimum((change.up @ change.basis.T).double(), 3, F, *low, 0.5))


test_matrix.__test__ = False  # it is no test, whatever its name
