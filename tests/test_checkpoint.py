"""Work is never lost: a training that was stopped anywhere goes on bit for bit, or is kept as it is."""

import shutil

import pytest
import torch

from seqlora.checkpoint import FOLDER
from seqlora.library import Library
from seqlora.settings import method_settings
from seqlora.teaching import teach
from seqlora.trainer import finish
from tests.small import QUICK, SmallModel, small_lesson

STEPS = 12
PLAIN = QUICK.with_(steps=STEPS, batch_size=2, interference=0.0, context="modular", basis_start="random")
SCHEDULES = {
    "joint": QUICK.with_(steps=STEPS, batch_size=2),
    "alternating": QUICK.with_(steps=STEPS, batch_size=2, schedule="alternating", inner_steps=2),
    "finite_difference": QUICK.with_(steps=STEPS, batch_size=2, schedule="finite_difference", inner_steps=1),
    "joint, nothing beside it": PLAIN,
    "cumulative": QUICK.with_(steps=STEPS, context="cumulative"),
    "o-lora": method_settings("o-lora", QUICK.with_(steps=STEPS)),
    "frozen": method_settings("frozen contrastive", QUICK.with_(steps=STEPS)),
}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A library of two concepts with room for more."""
    library = Library.create(tmp_path_factory.mktemp("models") / "pets", 4, 8, "attention and mlp")
    for seed, name in enumerate(("cat", "dog")):
        library = finish(teach(library, small_lesson(name, seed), QUICK, SmallModel())).library
    return library.path


@pytest.fixture
def library(pets, tmp_path):
    shutil.copytree(pets, tmp_path / "pets")
    return Library.open(tmp_path / "pets")


def bird(library, settings, model=None, **options):
    return teach(library, small_lesson("bird", 2), settings, model or SmallModel(), **options)


def stop_at(steps, step):
    """Runs until this many training steps are done and closes the generator; the last step that was told."""
    for progress in steps:
        if progress.phase == "training" and progress.step >= step and progress.loss == progress.loss:
            steps.close()
            return progress.step
    raise AssertionError("it ended before")


def result(taught):
    record = taught.record
    pairs = taught.library.load(record.name)
    moments = taught.library.moments(record.name)
    return pairs, taught.losses, moments.output_energy, {name: m.sketch for name, m in moments.by_input.items()}


def identical(one, other):
    (pairs, losses, energy, sketches), (pairs_2, losses_2, energy_2, sketches_2) = result(one), result(other)
    return (
        all(torch.equal(a, b) for name in pairs for a, b in zip(pairs[name], pairs_2[name], strict=True))
        and list(losses) == list(losses_2)
        and energy == energy_2
        and all(torch.equal(sketches[name], sketches_2[name]) for name in sketches)
    )


def files_in(library, suffix=".safetensors"):
    return sorted(path for path in (library.path / FOLDER).glob(f"*{suffix}") if path.stem != "prior")


# -- going on


@pytest.mark.parametrize("cut", [1, 2, 5, STEPS])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_training_ends_as_if_it_had_never_stopped(library, tmp_path, schedule, cut):
    settings = SCHEDULES[schedule]
    shutil.copytree(library.path, tmp_path / "other")
    straight = finish(bird(Library.open(tmp_path / "other"), settings))
    stopped_at = stop_at(bird(library, settings), cut)
    told = []
    resumed = finish(bird(library, settings), told.append)
    assert identical(straight, resumed)
    assert resumed.report["resumed_at"] == stopped_at
    assert [p.phase for p in told][:1] == ["training"] and min(p.step for p in told) == stopped_at
    assert resumed.report["steps"] == straight.report["steps"] == STEPS
    assert not (library.path / FOLDER).exists()
