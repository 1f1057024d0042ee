"""Metrics against what they stand for, computed from the inputs themselves."""

import pytest
import torch
from torch.linalg import qr

from seqlora.lora.types import LoRAPair
from seqlora.method.metrics import basis_error, captured_energy, change_norm, crosstalk, overlap
from seqlora.method.moments import Moment, Moments

LAYERS = {"a": (6, 10), "b": (4, 10), "c": (8, 7)}
INPUT_OF = {"a": "a", "b": "a", "c": "c"}  # a and b read one tensor
RANK = 2


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def concept(seed):
    return {
        name: LoRAPair(randn(m, RANK, seed=seed + i), qr(randn(n, RANK, seed=50 + seed + i))[0])
        for i, (name, (m, n)) in enumerate(LAYERS.items())
    }


def inputs(seed):
    """X (samples, n) of each distinct input."""
    return {"a": randn(40, 10, seed=seed), "c": 3 * randn(30, 7, seed=seed + 1)}


def moments_of(X):
    def moment(x):
        C = x.mT @ x / len(x)
        return Moment(C, C.diagonal().clone())

    return Moments({name: moment(x) for name, x in X.items()}, INPUT_OF, {})


CONCEPTS = [concept(100 * i) for i in range(3)]
INPUTS = [inputs(1000 + 10 * i) for i in range(3)]


def energy(pairs, X):
    """The mean squared change of the outputs, over all layers."""
    total = 0.0
    for name, (A, B) in pairs.items():
        x = X[INPUT_OF[name]]
        total += float(sum(torch.dot(y, y) for y in x @ (A @ B.mT).mT)) / len(x)
    return total


def test_crosstalk_is_the_change_on_the_others_inputs():
    found = crosstalk(CONCEPTS, [moments_of(X) for X in INPUTS])
    for i in range(3):
        for j in range(3):
            expected = energy(CONCEPTS[i], INPUTS[j]) / energy(CONCEPTS[j], INPUTS[j])
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-9)


def test_captured_energy_is_what_the_basis_passes_on():
    inside = whole = 0.0
    for name, (_, B) in CONCEPTS[0].items():
        x = INPUTS[1][INPUT_OF[name]]
        inside += float((x @ B @ B.mT).square().sum()) / len(x)
        whole += float(x.square().sum()) / len(x)
    assert captured_energy(CONCEPTS[0], moments_of(INPUTS[1])) == pytest.approx(inside / whole, rel=1e-9)


def test_overlap_is_the_share_of_the_span():
    found = overlap(CONCEPTS)
    for i in range(3):
        for j in range(3):
            shared = sum(float((CONCEPTS[i][n].basis.mT @ CONCEPTS[j][n].basis).norm() ** 2) for n in LAYERS)
            assert float(found[i, j]) == pytest.approx(shared / (RANK * len(LAYERS)), rel=1e-9)


def test_overlap_of_concepts_with_other_ranks():
    """As in a sum of libraries; narrower ones are filled up with columns of zeros, which share nothing."""
    wide = {n: LoRAPair(randn(m, 3, seed=5), qr(randn(size, 3, seed=9))[0]) for n, (m, size) in LAYERS.items()}
    found, both = overlap([CONCEPTS[0], wide]), (CONCEPTS[0], wide)
    for i, rank in enumerate((RANK, 3)):
        for j in range(2):
            shared = sum(float((both[i][n].basis.mT @ both[j][n].basis).norm() ** 2) for n in LAYERS)
            assert float(found[i, j]) == pytest.approx(shared / (rank * len(LAYERS)), rel=1e-9)


def test_change_norm_is_that_of_the_matrices():
    total = sum(float((A @ B.mT).norm() ** 2) for A, B in CONCEPTS[0].values()) ** 0.5
    assert change_norm(CONCEPTS[0]) == pytest.approx(total, rel=1e-9)


def test_basis_error_finds_the_worst_entry():
    both = {n: qr(randn(size, 2 * RANK, seed=7))[0] for n, (_, size) in LAYERS.items()}
    pairs = [{n: LoRAPair(B[:, :0], B[:, k : k + RANK].clone()) for n, B in both.items()} for k in (0, RANK)]
    across, within = basis_error(pairs)
    assert across < 1e-12 and within < 1e-12
    pairs[0]["b"].basis[:, 1] *= 1.01
    assert basis_error(pairs)[1] == pytest.approx(0.0201, rel=1e-6)
    pairs[1]["c"].basis[:, 0] += 0.1 * pairs[0]["c"].basis[:, 1]
    assert basis_error(pairs)[0] == pytest.approx(0.1, rel=1e-6)
    assert basis_error(pairs[:1])[0] == 0.0
