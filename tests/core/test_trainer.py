"""Training concepts on a small real model: orthogonality, determinism, context, and leaving the model as it was."""

import pytest
import torch

from seqlora.diffusion.batches import Batches, Examples
from seqlora.errors import SeqLoRAError
from seqlora.io.safetensors_file import write_tensors
from seqlora.lora.attach import ActiveConcepts, Stack, attached
from seqlora.lora.compose import compose
from seqlora.lora.formats import from_native, to_native
from seqlora.lora.ranks import layer_rank
from seqlora.lora.targets import layer_shapes
from seqlora.lora.types import LoRAPair
from seqlora.method.metrics import basis_error
from seqlora.method.moments import Moments
from seqlora.settings import METHODS, method_settings
from seqlora.training import trainer
from seqlora.training.measure import measure_prior
from seqlora.training.progress import run_to_end
from seqlora.training.start import earlier_directions, orthonormalised
from seqlora.training.trainer import train_concept
from tests.support.small import QUICK, TOKENS, WIDTH, Exploding, SmallDenoiser, small_examples, small_layers, small_ranks

CONDS = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(i)) for i in range(8)]
UNCOND = torch.zeros(WIDTH)


@pytest.fixture(scope="module")
def denoiser():
    return SmallDenoiser()


@pytest.fixture(scope="module")
def prior(denoiser):
    return run_to_end(measure_prior(denoiser, small_layers(denoiser), (TOKENS, WIDTH), CONDS, UNCOND))


def teach_all(denoiser, prior, settings, count, rank=2):
    """`count` concepts one after another; their results."""
    taught, seen = [], None
    for seed in range(count):
        earlier = [t.pairs for t in taught]
        steps = train_concept(
            denoiser,
            small_layers(denoiser),
            small_examples(seed),
            settings,
            small_ranks(denoiser, rank),
            earlier,
            prior,
            seen,
        )
        taught.append(run_to_end(steps))
        seen = taught[-1].moments if seen is None else seen + taught[-1].moments
    return taught


@pytest.fixture(scope="module")
def sixteen(denoiser, prior):
    """Sixteen concepts of rank 2: exactly as many as layers of width 32 have room for."""
    return teach_all(denoiser, prior, QUICK, 16)


def same(one, other):
    return all(torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True))


# -- orthogonality


def test_sixteen_concepts_are_orthogonal_in_fp32_files_and_fp16(sixteen, tmp_path):
    from safetensors.torch import load_file

    for i, t in enumerate(sixteen):
        write_tensors(tmp_path / f"{i}.safetensors", to_native(t.pairs))
    files = [from_native(load_file(tmp_path / f"{i}.safetensors")) for i in range(16)]
    across, within = basis_error(files)
    assert across <= 1e-5 and within <= 1e-5
    halved = [{n: LoRAPair(A.half(), B.half()) for n, (A, B) in concept.items()} for concept in files]
    across, within = basis_error(halved)
    assert across <= 1e-3 and within <= 1e-3
    assert not any(t.full_layers for t in sixteen)


def test_a_full_layer_switches_to_metric_and_is_recorded(denoiser, prior, sixteen):
    """The 17th of rank 2 finds room only where the layer is twice as wide."""
    earlier = [t.pairs for t in sixteen]
    one_more = run_to_end(
        train_concept(denoiser, small_layers(denoiser), small_examples(16), QUICK, small_ranks(denoiser), earlier, prior)
    )
    narrow = [name for name, (_, n) in layer_shapes(small_layers(denoiser)).items() if n == WIDTH]
    assert one_more.full_layers == narrow
    for name, (_, B) in one_more.pairs.items():
        F = torch.cat([concept[name].basis for concept in earlier], 1)
        overlap = float((F.mT @ B).abs().max())
        assert overlap > 0.1 if name in narrow else overlap <= 1e-5
        assert float((B.mT @ B - torch.eye(2)).abs().max()) <= 1e-5


def test_orthogonality_metric_has_no_complement(denoiser, prior):
    one, two = teach_all(denoiser, prior, QUICK.with_(orthogonality="metric"), 2)
    across, within = basis_error([one.pairs, two.pairs])
    assert across > 1e-3 and within <= 1e-5
    assert not two.full_layers


def test_layer_rank_leaves_room_for_all():
    for width in (1, 7, 64, 1280):
        for capacity in (1, 3, 50):
            rank = layer_rank(width, 8, capacity)
            assert 1 <= rank <= 8
            assert rank * capacity <= width / 4 or rank == 1


# -- learning


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(denoiser, prior, method):
    settings = method_settings(method, QUICK.with_(steps=60))
    taught = teach_all(denoiser, prior, settings, 2)
    for t in taught:
        assert sum(t.losses[-5:]) < 0.8 * sum(t.losses[:5])
        assert all(A.any() and A.isfinite().all() and B.isfinite().all() for A, B in t.pairs.values())
    across, _ = basis_error([t.pairs for t in taught])
    constrained = settings.orthogonality == "exact"
    assert (across <= 1e-5) == constrained


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].get("basis_learning_rate") == 0.0])
def test_a_frozen_basis_does_not_move(denoiser, prior, method):
    settings = method_settings(method, QUICK)
    short, long = (teach_all(denoiser, prior, settings.with_(steps=steps), 1)[0].pairs for steps in (1, 12))
    for name in short:
        assert torch.equal(short[name].basis, long[name].basis)
        assert not torch.equal(short[name].up, long[name].up)


def test_the_basis_moves_otherwise(denoiser, prior):
    short, long = (teach_all(denoiser, prior, QUICK.with_(steps=steps), 1)[0].pairs for steps in (1, 12))
    assert not any(torch.equal(short[name].basis, long[name].basis) for name in short)


def test_coefficients_start_at_zero(prior):
    """So the first pass puts out what the bare model does, and the first penalty is nothing."""
    bare, changed = SmallDenoiser(), []

    class Watching(SmallDenoiser):
        def __call__(self, x, sigma, cond):
            found = super().__call__(x, sigma, cond)
            if torch.is_grad_enabled():
                changed.append(not torch.equal(found, bare(x, sigma, cond)))
            return found

    watching = Watching()
    steps = train_concept(watching, small_layers(watching), small_examples(0), QUICK, small_ranks(watching), (), prior)
    training = [p for p in steps if p.phase == "training"]
    assert changed == [False] + [True] * (QUICK.steps - 1)
    assert training[0].penalty == 0.0 < training[-1].penalty


def test_interference_holds_the_change_on_other_inputs_down(denoiser, prior):
    def change(strength):
        pairs = teach_all(denoiser, prior, QUICK.with_(steps=60, interference_weight=strength), 1)[0].pairs
        return sum(float(torch.trace(A @ B.mT @ prior[name].sketch @ B @ A.mT)) for name, (A, B) in pairs.items())

    assert change(10.0) < 0.5 * change(0.0)


@pytest.mark.parametrize("schedule", ["joint", "alternating", "finite_difference"])
def test_steps_count_passes(prior, schedule):
    calls = []

    class Counting(SmallDenoiser):
        def __call__(self, x, sigma, cond):
            if torch.is_grad_enabled():
                calls.append(x)
            return super().__call__(x, sigma, cond)

    counting = Counting()
    settings = QUICK.with_(schedule=schedule, inner_steps=2, steps=12)  # two rounds of 2 + 4 passes with finite differences
    steps = train_concept(counting, small_layers(counting), small_examples(0), settings, small_ranks(counting), (), prior)
    reported = [p.step for p in steps if p.phase == "training"]
    assert len(calls) == 12 == reported[-1]
    assert reported == ([1, 2, 6, 7, 8, 12] if schedule == "finite_difference" else list(range(1, 13)))


def test_the_look_ahead_uses_two_batches(prior):
    """Passes 1, 3 and 4 of an upper step are on the lower level's batch, pass 2 on a fresh one."""
    seen = []

    class Watching(SmallDenoiser):
        def __call__(self, x, sigma, cond):
            if torch.is_grad_enabled():
                seen.append(x.clone())
            return super().__call__(x, sigma, cond)

    watching = Watching()
    settings = QUICK.with_(schedule="finite_difference", inner_steps=1, steps=5)
    list(train_concept(watching, small_layers(watching), small_examples(0), settings, small_ranks(watching), (), prior))
    first, lower, upper, plus, minus = seen
    assert torch.equal(lower, plus) and torch.equal(lower, minus)
    assert not torch.equal(lower, upper) and not torch.equal(first, lower)


def test_batches_never_mix_shapes_and_use_every_picture(denoiser):
    latents = [torch.full((2, size, 3), float(i)) for i, size in enumerate((4, 8, 4, 8, 8))]
    batches = Batches(Examples(latents, list("abcde")), denoiser, 2, torch.Generator().manual_seed(0))
    seen = []
    for _ in range(60):
        batch = batches.next()
        numbers = [int(x[0, 0, 0]) for x in batch.x0]
        assert batch.cond == ["abcde"[i] for i in numbers]
        assert len(set(numbers)) == 2 or batch.x0.shape[2] == 8  # no repetition before all were used
        seen += numbers
    counts = [seen.count(i) for i in range(5)]
    assert sum(counts) == 120 and min(counts) > 15


# -- the same again


def test_a_seed_decides_everything(denoiser, prior):
    one, again, other = (teach_all(denoiser, prior, QUICK.with_(seed=seed), 2)[1] for seed in (5, 5, 6))
    assert same(one.pairs, again.pairs) and one.losses == again.losses
    assert not same(one.pairs, other.pairs)


def test_the_global_generator_is_neither_used_nor_moved(denoiser, prior):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = teach_all(denoiser, prior, QUICK, 1)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(one.pairs, teach_all(denoiser, prior, QUICK, 1)[0].pairs)


# -- the model afterwards


@pytest.mark.parametrize("stop_after", [0, 1, 6, 7, 10, 100])
def test_stopping_anywhere_leaves_the_model_as_it_was(prior, stop_after):
    denoiser = SmallDenoiser()
    layers = small_layers(denoiser)
    x = torch.randn(4, TOKENS, WIDTH)
    weights = {k: v.clone() for k, v in denoiser.net.state_dict().items()}
    before = denoiser.net(x)
    steps = train_concept(denoiser, layers, small_examples(0), QUICK, small_ranks(denoiser), (), prior)
    for _, _ in zip(range(stop_after), steps, strict=False):
        pass
    steps.close()
    assert not any(layer._forward_hooks for layer in layers.values())
    assert torch.equal(denoiser.net(x), before)
    assert all(torch.equal(v, weights[k]) for k, v in denoiser.net.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in denoiser.net.parameters())


def test_a_loss_that_is_no_number_stops(prior):
    denoiser = Exploding()
    layers = small_layers(denoiser)
    with pytest.raises(SeqLoRAError, match=r"no longer a number at step \d+; lower learning_rate \(now 0.01\)"):
        run_to_end(train_concept(denoiser, layers, small_examples(0), QUICK, small_ranks(denoiser), (), prior))
    assert not any(layer._forward_hooks for layer in layers.values())


def test_bf16_trains_with_fp32_results():
    denoiser = SmallDenoiser(dtype=torch.bfloat16)
    layers = small_layers(denoiser)
    prior = run_to_end(measure_prior(denoiser, layers, (TOKENS, WIDTH), CONDS, UNCOND))
    taught = teach_all(denoiser, prior, QUICK.with_(steps=60), 2)
    for t in taught:
        assert sum(t.losses[-5:]) < 0.8 * sum(t.losses[:5])
        assert all(A.dtype == B.dtype == torch.float32 for A, B in t.pairs.values())
    across, within = basis_error([t.pairs for t in taught])
    assert across <= 1e-5 and within <= 1e-5


def test_adapters_add_exactly_a_b_x(denoiser):
    layers = small_layers(denoiser)
    name = "diffusion_model.blocks.0.attn_q"
    A, B = torch.randn(1, WIDTH, 2), torch.randn(1, WIDTH, 2)
    x = torch.randn(3, TOKENS, WIDTH)
    before = layers[name](x)
    with attached(layers, [Stack([name], A, B)]):
        found = layers[name](x).detach()
    torch.testing.assert_close(found, before + x @ (A[0] @ B[0].mT).mT, rtol=1e-5, atol=1e-5)
    assert torch.equal(layers[name](x), before)


# -- the room that is left


def test_bases_at_right_angles_are_the_complement_as_they_are(sixteen):
    earlier = [t.pairs for t in sixteen[:4]]
    name = "diffusion_model.blocks.0.attn_q"
    assert torch.equal(earlier_directions(name, WIDTH, earlier), torch.cat([concept[name].basis for concept in earlier], 1))


@pytest.mark.parametrize("by", [1e-3, 1.0])
def test_of_bases_that_overlap_one_is_made(sixteen, by):
    name = "diffusion_model.blocks.0.attn_q"
    one, other = (t.pairs[name].basis for t in sixteen[:2])
    leaning = torch.linalg.qr(other + by * one)[0]
    earlier = [{name: LoRAPair(basis, basis)} for basis in (one, leaning, one)]
    F = earlier_directions(name, WIDTH, earlier)
    assert F.shape == (WIDTH, 4) and torch.allclose(F.mT @ F, torch.eye(4), atol=1e-6)
    for basis in (one, leaning):
        assert torch.allclose(F @ (F.mT @ basis), basis, atol=1e-5)


# -- context


def watch(monkeypatch, denoiser, prior, earlier, co_training, steps=40):
    """Which earlier concepts the layers had on, at every training pass; as ActiveConcepts has them, not as was asked."""
    seen = []

    class Watched(ActiveConcepts):
        def select(self, chosen):
            super().select(chosen)
            names = small_ranks(denoiser)
            on = []
            for i, concept in enumerate(earlier):
                held = [
                    name in self.active
                    and any(torch.equal(column, concept[name].basis[:, 0]) for column in self.active[name][1].mT)
                    for name in names
                ]
                assert all(held) or not any(held)
                on += [i] if held[0] else []
            for name, (A, B) in self.active.items():
                expected = compose([(earlier[i], 1.0) for i in on])[name]
                torch.testing.assert_close(A @ B.mT, expected.up @ expected.basis.mT, rtol=1e-5, atol=1e-5)
                assert B.shape[1] == 2 * len(on)
            seen.append(on)

    monkeypatch.setattr(trainer, "ActiveConcepts", Watched)
    settings = QUICK.with_(co_training=co_training, steps=steps)
    seen_moments = Moments() if prior is None else prior
    list(
        train_concept(
            denoiser, small_layers(denoiser), small_examples(99), settings, small_ranks(denoiser), earlier, prior, seen_moments
        )
    )
    return seen


def test_contexts_turn_on_what_they_say(monkeypatch, denoiser, prior, sixteen):
    earlier = [t.pairs for t in sixteen[:4]]
    assert watch(monkeypatch, denoiser, prior, earlier, "modular") == []
    assert watch(monkeypatch, denoiser, prior, earlier, "cumulative") == [[0, 1, 2, 3]] * 10
    drawn = watch(monkeypatch, denoiser, prior, earlier, "stochastic", steps=160)
    assert len(drawn) == 160 // trainer.STEPS_BETWEEN_DRAWS
    assert {len(on) for on in drawn} == {0, 1, 2, 3, 4}
    assert {i for on in drawn for i in on} == {0, 1, 2, 3}


def test_the_context_changes_what_the_layers_put_out(denoiser, sixteen):
    layers = small_layers(denoiser)
    name = "diffusion_model.blocks.0.attn_q"
    earlier = [t.pairs for t in sixteen[:3]]
    stack = Stack([name], torch.zeros(1, WIDTH, 2), earlier[0][name].basis[None].clone())
    context = ActiveConcepts([stack], earlier)
    context.select([0, 2])
    x = torch.randn(3, TOKENS, WIDTH)
    with attached(layers, [stack], context):
        found = layers[name](x).detach()
    change = sum(earlier[i][name].up @ earlier[i][name].basis.mT for i in (0, 2))
    torch.testing.assert_close(found, layers[name](x) + x @ change.mT, rtol=1e-5, atol=1e-5)


def test_a_stochastic_context_never_exceeds_its_limit():
    rng = torch.Generator().manual_seed(0)
    drawn = [trainer.draw_active("stochastic", 60, rng) for _ in range(400)]
    assert max(map(len, drawn)) == trainer.MOST_ACTIVE
    assert all(len(set(on)) == len(on) for on in drawn)
    assert {i for on in drawn for i in on} == set(range(60))


def test_plain_lora_files_have_an_orthonormal_basis_and_the_same_change():
    A, B = torch.randn(7, 3), torch.randn(9, 3)
    pair = orthonormalised(LoRAPair(A, B))
    assert torch.allclose(pair.up @ pair.basis.mT, A @ B.mT, atol=1e-5)
    assert torch.allclose(pair.basis.mT @ pair.basis, torch.eye(3), atol=1e-6)
