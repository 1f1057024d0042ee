"""The bound against explicit matrices, against draws from distributions that it is proven for, and on real activations."""

import math

import pytest
import torch
from torch.linalg import qr

from seqlora.diffusion.batches import Batches
from seqlora.errors import SeqLoRAError
from seqlora.lora.types import LoRAPair
from seqlora.method import moments as moments_module
from seqlora.method.bound import change_energy, check_bound, forgetting_bound, interference_energy, residual_interference, share
from seqlora.method.moments import Moment, Moments, Recorder
from tests.support.small import SmallDenoiser, small_examples, small_layers

RANK = 2
LAYERS = {"tall": (40, 12), "flat": (3, 12), "wide": (6, 400)}  # (m, n); the others' total rank is 4, above m of "flat"


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bases(n, seed, orthogonal):
    """One basis per concept."""
    if orthogonal:
        return list(qr(randn(n, 3 * RANK, seed=seed))[0].split(RANK, 1))
    return [qr(randn(n, RANK, seed=seed + i))[0] for i in range(3)]


def three_concepts(orthogonal):
    found = [{}, {}, {}]
    for place, (layer, (m, n)) in enumerate(LAYERS.items()):
        for i, B in enumerate(bases(n, 10 * place, orthogonal)):
            found[i][layer] = LoRAPair(randn(m, RANK, seed=100 + 10 * place + i), B)
    return found


def moment_of(C):
    omega = moments_module.test_matrix(len(C))
    return Moment(C if omega is None else C @ omega.double(), C.diagonal().clone())


def second_moment(n, rank, seed):
    """Of inputs with a mean far from zero."""
    x = randn(n, rank, seed=seed)
    mean = 3 * randn(n, seed=seed + 1)
    return x @ x.mT / rank + torch.outer(mean, mean)


C = {layer: second_moment(n, 40, seed=1000 + n) for layer, (_, n) in LAYERS.items()}
OUTPUT = {"tall": 7.0, "flat": 5.0, "wide": 3.0}
SEEN = Moments({layer: moment_of(c) for layer, c in C.items()}, {layer: layer for layer in C}, OUTPUT)


def others(concepts, j, layer):
    """M, m x n."""
    return sum(c[layer].up @ c[layer].basis.mT for i, c in enumerate(concepts) if i != j)


@pytest.mark.parametrize("orthogonal", [True, False], ids=["exact", "metric"])
@pytest.mark.parametrize("layer", LAYERS)
def test_disturbance_has_the_norms_of_the_explicit_matrix(layer, orthogonal):
    concepts = three_concepts(orthogonal)
    for j in range(3):
        M = others(concepts, j, layer)
        sigma = M @ C[layer] @ M.mT
        found = interference_energy(concepts, j, SEEN, layer)
        assert found.trace == pytest.approx(float(sigma.trace()), rel=1e-6)
        assert found.frobenius == pytest.approx(float(torch.linalg.matrix_norm(sigma)), rel=1e-6)
        assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(sigma, 2)), rel=1e-6)


def test_a_moment_of_full_rank_that_was_sketched_disturbs_as_its_stored_form_says():
    """Above the sketch's rank C is VV' + diag(d), close to the true one and nothing else."""
    true = second_moment(400, 390, seed=5)
    seen = Moments({"wide": moment_of(true)}, {"wide": "wide"}, OUTPUT)
    factor, diagonal = seen["wide"].factor()
    concepts = three_concepts(False)
    M = others(concepts, 0, "wide")
    stored = M @ (factor @ factor.mT + diagonal.diag()) @ M.mT
    found = interference_energy(concepts, 0, seen, "wide")
    assert found.trace == pytest.approx(float(stored.trace()), rel=1e-9)
    assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(stored, 2)), rel=1e-9)
    assert found.trace == pytest.approx(float((M @ true @ M.mT).trace()), rel=0.2)


def test_only_the_residual_counts_where_bases_are_orthogonal():
    """A million times more energy in concept 0's own directions changes nothing there, and much on a metric layer."""
    for orthogonal in (True, False):
        concepts = three_concepts(orthogonal)
        B = concepts[0]["tall"].basis
        louder = Moments({"tall": moment_of(C["tall"] + 1e6 * B @ B.mT)}, {"tall": "tall"}, OUTPUT)
        before, after = (interference_energy(concepts, 0, seen, "tall").trace for seen in (SEEN, louder))
        assert after == pytest.approx(before, rel=1e-6) if orthogonal else after > 1000 * before


def test_a_concept_alone_is_disturbed_by_nothing():
    alone = three_concepts(True)[:1]
    for layer in LAYERS:
        size = interference_energy(alone, 0, SEEN, layer)
        assert size == (0, 0, 0) and forgetting_bound(*size) == 0
    assert residual_interference(alone, [SEEN]) == [(0, 0)]


def test_shares_of_nothing():
    assert share(0.0, 0.0) == 0 and share(1.0, 4.0) == 0.25 and share(1.0, 0.0) is None


@pytest.mark.parametrize("delta", [0.3, 0.05, 0.005])
@pytest.mark.parametrize("layer", ["tall", "flat"])
@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0])
def test_the_bound_holds_for_a_gaussian_of_any_mean_and_is_not_empty(layer, mean, delta):
    concepts, n, draws = three_concepts(False), 12, 100_000
    half, centre = randn(n, n, seed=3), mean * randn(n, seed=4)
    x = randn(draws, n, seed=5) @ half.mT + centre
    seen = Moments({layer: moment_of(half @ half.mT + torch.outer(centre, centre))}, {layer: layer}, OUTPUT)
    measured = (x @ others(concepts, 0, layer).mT).square().sum(1)
    size = interference_energy(concepts, 0, seen, layer)
    bound = forgetting_bound(*size, delta)
    assert float((measured <= bound).double().mean()) >= 1 - delta
    assert bound < 10 * float(measured.quantile(1 - delta))
    assert size.trace == pytest.approx(float(measured.mean()), rel=0.03)


def test_a_mixture_of_scales_needs_its_constant():
    """One row in fifty is large: sub-Gaussian with K^2 = largest variance over mean variance, and not with K = 1."""
    concepts, delta = three_concepts(True), 0.01
    large = torch.rand(100_000, generator=torch.Generator().manual_seed(1)) < 0.02
    scale = torch.where(large, 10.0, 1.0)[:, None]
    x = scale * randn(100_000, 12, seed=2)
    variance = 0.02 * 100 + 0.98
    seen = Moments({"tall": moment_of(variance * torch.eye(12).double())}, {"tall": "tall"}, OUTPUT)
    measured = (x @ others(concepts, 1, "tall").mT).square().sum(1)
    size = interference_energy(concepts, 1, seen, "tall")
    within = [float((measured <= forgetting_bound(*size, delta, K)).double().mean()) for K in (1, math.sqrt(100 / variance))]
    assert within[0] < 1 - delta <= within[1]


@pytest.mark.parametrize("tokens", [1, 16])
def test_it_bounds_sums_over_layers_of_means_over_tokens_however_they_depend(tokens):
    """Layers that see the very same rows, and tokens that share most of what they are: the worst there is for a sum."""
    concepts, delta, draws = three_concepts(False), 0.05, 20_000
    shared = randn(draws, 1, 12, seed=8)
    x = (0.9**0.5) * shared + (0.1**0.5) * randn(draws, tokens, 12, seed=9)
    moment = moment_of(torch.eye(12).double())
    seen = Moments({"tall": moment, "flat": moment}, {"tall": "tall", "flat": "flat"}, OUTPUT)
    total = sum((x @ others(concepts, 2, layer).mT).square().sum(2).mean(1) for layer in ("tall", "flat"))
    bound = sum(forgetting_bound(*interference_energy(concepts, 2, seen, layer), delta) for layer in ("tall", "flat"))
    assert float((total <= bound).double().mean()) >= 1 - delta
    assert bound < 10 * float(total.quantile(1 - delta))


def test_the_bound_is_the_formula():
    t = math.log(1 / 0.2)
    assert forgetting_bound(5, 3, 2, 0.2) == pytest.approx(5 + 6 * math.sqrt(t) + 4 * t)
    assert forgetting_bound(5, 3, 2, 0.2, 1.5) == pytest.approx(2.25 * (5 + 6 * math.sqrt(t) + 4 * t))


@pytest.mark.parametrize("delta, constant", [(0, 1), (1, 1), (float("nan"), 1), (0.1, 0.9), (0.1, float("inf"))])
def test_what_cannot_be_is_refused(delta, constant):
    with pytest.raises(SeqLoRAError, match="delta is|sub-Gaussian constant is"):
        forgetting_bound(1, 1, 1, delta, constant)


def test_residual_interference_and_own_change_are_those_of_the_matrices():
    concepts = three_concepts(False)
    for j, found in enumerate(residual_interference(concepts, [SEEN] * 3)):
        taken = sum(
            float((c[layer].basis.mT @ C[layer] @ c[layer].basis).trace())
            for layer in LAYERS
            for i, c in enumerate(concepts)
            if i != j
        )
        disturbed = sum(float((others(concepts, j, layer) @ C[layer] @ others(concepts, j, layer).mT).trace()) for layer in C)
        assert found.basis == pytest.approx(taken / sum(float(c.trace()) for c in C.values()), rel=1e-6)
        assert found.interference == pytest.approx(disturbed / 15, rel=1e-6)
    A, B = concepts[1]["tall"]
    own = float((A @ B.mT @ C["tall"] @ B @ A.mT).trace())
    assert change_energy(concepts[1], SEEN, "tall") == pytest.approx(own, rel=1e-9)


def small_setting():
    denoiser = SmallDenoiser()
    layers = small_layers(denoiser)
    concepts = [
        {
            name: LoRAPair(torch.randn(module.out_features, RANK), qr(torch.randn(module.in_features, RANK))[0])
            for name, module in layers.items()
        }
        for _ in range(3)
    ]
    batches = Batches(small_examples(0), denoiser, 4, torch.Generator().manual_seed(0))
    return denoiser, layers, concepts, [batches.next() for _ in range(5)]


def test_the_check_measures_every_row_of_every_layer():
    torch.manual_seed(0)
    denoiser, layers, concepts, batches = small_setting()
    recorder, rows = Recorder(layers), {name: [] for name in layers}
    handles = [
        module.register_forward_hook(lambda _, args, out, name=name: rows[name].append(args[0].reshape(-1, args[0].shape[-1])))
        for name, module in layers.items()
    ]
    with torch.no_grad(), recorder.attached():
        for batch in batches:
            denoiser(denoiser.add_noise(batch.x0, batch.noise, batch.sigma), batch.sigma, batch.cond)
    for handle in handles:
        handle.remove()
    moments, delta, constant = recorder.moments(), 0.25, 1.01
    found = check_bound(denoiser, layers, batches, concepts, 1, moments, delta, constant)
    for name in layers:
        x = torch.cat(rows[name]).double()
        measured = (x @ others(concepts, 1, name).double().mT).square().sum(1)
        bound = forgetting_bound(*interference_energy(concepts, 1, moments, name), delta, constant)
        check = found[name]
        assert check.rows == len(x) == 5 * 4 * 16
        assert check.within == pytest.approx(float((measured <= bound).double().mean()), abs=1.5 / len(x))
        assert check.mean == pytest.approx(float(measured.mean()), rel=1e-4)
        assert check.of_bound == pytest.approx(check.mean / bound, rel=1e-9)
        assert check.of_trace == pytest.approx(1, rel=1e-4)  # these rows are those of the moments
        needed = forgetting_bound(*interference_energy(concepts, 1, moments, name), delta) * check.constant**2
        share_needed = float((measured <= needed * (1 + 1e-4)).double().mean())
        assert 1 - delta <= share_needed <= 1 - delta + 2 / len(x)
    assert not any(module._forward_hooks for module in layers.values())


def test_the_check_of_a_concept_alone_and_of_no_pictures():
    denoiser, layers, concepts, batches = small_setting()
    recorder = Recorder(layers)
    with torch.no_grad(), recorder.attached():
        denoiser(batches[0].x0, batches[0].sigma, batches[0].cond)
    for check in check_bound(denoiser, layers, batches, concepts[:1], 0, recorder.moments()).values():
        assert (check.within, check.mean, check.of_bound, check.of_trace, check.constant) == (1, 0, 0, 0, 0)
    with pytest.raises(SeqLoRAError, match="no batch"):
        check_bound(denoiser, layers, [], concepts, 0, recorder.moments())
