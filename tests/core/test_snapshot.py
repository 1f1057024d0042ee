"""Looking at a concept while it is taught: what is seen is true, and it makes no difference to what is learned."""

import shutil

import pytest
import torch

from seqlora.backends.model import stacks_of
from seqlora.diffusion.batches import Batches
from seqlora.library.store import Library
from seqlora.lora.attach import attached
from seqlora.lora.compose import compose
from seqlora.method import moments
from seqlora.method.moments import Moment
from seqlora.settings import method_settings
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import (
    QUICK,
    SmallDenoiser,
    SmallModel,
    full_library,
    small_examples,
    small_layers,
    small_request,
)

LAYERS = "attention and mlp"


def lessons(library, model, settings=QUICK, name="owl"):
    return train_steps(library, small_request(name, 7), settings, model)


def drawn(model):
    """What the model makes of something fixed, as it is now."""
    examples, rng = small_examples(3), torch.Generator().manual_seed(5)
    with torch.no_grad():
        batch = Batches(examples, model.denoiser, 4, rng).next()
        return model.denoiser(model.denoiser.add_noise(batch.x0, batch.noise, batch.sigma), batch.sigma, batch.cond)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "changes",
    [{}, {"co_training": "modular"}, {"co_training": "cumulative"}, {"schedule": "alternating"}],
    ids=lambda c: str(c),
)
def test_looking_changes_no_bit(original, tmp_path, changes, dtype):
    """At every step both figures, and a forward pass with all concepts on, against a training at which nobody looks."""
    taught, seen = [], 0

    def look(progress):
        nonlocal seen
        if progress.snapshot:
            seen += 1
            progress.snapshot.figures()
            with progress.snapshot.all_active():
                drawn(model)

    for place, tell in (("alone", lambda progress: None), ("watched", look)):
        shutil.copytree(original.path, tmp_path / place)
        model = SmallModel()
        model.denoiser = SmallDenoiser(dtype=dtype)
        steps = lessons(Library.open(tmp_path / place), model, QUICK.with_(**changes))
        taught.append(run_to_end(steps, tell))
    one, other = (t.library.load("owl") for t in taught)
    assert seen >= QUICK.steps - 2
    assert list(taught[0].losses) == list(taught[1].losses)
    assert all(torch.equal(a, b) for layer in one for a, b in zip(one[layer], other[layer], strict=True))


def test_the_figures_are_those_of_the_dense_matrices(tmp_path):
    library, looks = full_library(tmp_path / "full", SmallModel()), []

    def look(progress):
        if progress.snapshot:
            looks.append(
                (
                    progress.snapshot.figures(),
                    {n: pair for stack in progress.snapshot.stacks for n, pair in stack.pairs().items()},
                )
            )

    taught = run_to_end(lessons(library, SmallModel()), look).library
    earlier, prior = [library.load(name) for name in library.names], library.prior()
    own, others = taught.moments("owl"), [library.moments(name) for name in library.names]
    for (orthogonality, crosstalk), pairs in looks:
        bases = {layer: [concept[layer].basis.double() for concept in earlier] for layer in pairs}
        entries = [(F.mT @ pairs[layer].basis.double()).abs().max() for layer in pairs for F in bases[layer]]
        entries += [(B.mT @ B - torch.eye(B.shape[1])).abs().max() for _, B in pairs.values()]
        assert orthogonality == pytest.approx(float(max(entries)), rel=1e-2, abs=2e-7)
        there, here = (
            sum(
                float((prior.output_curvature[layer].sketch.double() @ dW @ moments[layer].sketch.double() @ dW.mT).trace())
                for moments in seen
                for layer, dW in ((layer, A.double() @ B.double().mT) for layer, (A, B) in pairs.items())
            )
            for seen in (others, [own])
        )
        assert crosstalk == pytest.approx(there / len(others) / here, rel=1e-3)
    full = max(figures[0] for figures, _ in looks)
    assert 1e-4 < full <= 1  # the layers of width 32 are full, and are shared


def test_orthogonality_is_kept_where_there_is_room(tmp_path):
    library, model = Library.create(tmp_path / "roomy", 2, 8, LAYERS), SmallModel()
    looks = []
    for seed, name in enumerate(("cat", "dog", "owl")):
        steps = train_steps(library, small_request(name, seed), QUICK, model)
        library = run_to_end(steps, lambda p: looks.append(p.snapshot.figures()) if p.snapshot else None).library
    assert max(orthogonality for orthogonality, _ in looks) <= 1e-5
    assert [crosstalk is None for _, crosstalk in looks] == [True] * QUICK.steps + [False] * 2 * QUICK.steps


def test_no_moments_of_the_earlier_concepts_no_crosstalk(library):
    looks = []
    plain = method_settings("lora", QUICK)
    run_to_end(lessons(library, SmallModel(), plain), lambda p: looks.append(p.snapshot.figures()) if p.snapshot else None)
    assert {crosstalk for _, crosstalk in looks} == {None} and looks[-1][0] > 1e-3  # plain LoRA's bases are not orthogonal


@pytest.mark.parametrize("co_training", ["stochastic", "modular"])
def test_beside_all_is_what_applying_all_concepts_draws(library, co_training):
    model, seen = SmallModel(), []

    def look(progress):
        if progress.snapshot and progress.step == QUICK.steps:
            with progress.snapshot.all_active():
                seen.append(drawn(model))

    taught = run_to_end(lessons(library, model, QUICK.with_(co_training=co_training)), look).library
    composed = compose([(taught.load(name), 1.0) for name in taught.names])
    with attached(small_layers(model.denoiser), stacks_of(composed, model.denoiser.device, model.denoiser.dtype)):
        applied = drawn(model)
    assert float((seen[0] - applied).abs().max()) <= 1e-5 < float((applied - drawn(model)).abs().max())


def test_the_energy_of_a_wide_moment_is_that_of_its_sketch():
    rng = torch.Generator().manual_seed(0)
    rows, B = torch.randn(100, 400, generator=rng), torch.randn(400, 3, generator=rng)
    moment = Moment(rows.mT @ (rows @ moments.test_matrix(400)), rows.square().sum(0))
    factor, diagonal = moment.factor()
    expected = B.double().mT @ (factor @ factor.mT + diagonal.diag()) @ B.double()
    assert torch.allclose(moment.energy(B), expected, rtol=1e-9)
    exact = Moment(rows.mT @ rows, moment.diagonal)
    assert torch.allclose(exact.energy(B), ((rows @ B).mT @ (rows @ B)).double(), rtol=1e-3)


class StopError(Exception):
    pass


def test_cancelling_while_it_is_saved_loses_nothing(library):
    model, phases = SmallModel(), []

    def stop(progress):
        phases.append(progress.phase)
        if progress.phase == "saving":
            raise StopError

    with pytest.raises(StopError):
        run_to_end(lessons(library, model), stop)
    assert Library.open(library.path).names == ["cat", "dog"] and phases.count("saving") == 1
    taught = run_to_end(lessons(library, model))
    assert taught.report.resumed_at == QUICK.steps == len(taught.losses) and taught.library.names[-1] == "owl"
