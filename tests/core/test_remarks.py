"""What is told of a loss that does not fall and of a rate that does not suit, and when."""

from __future__ import annotations

import random

import pytest

from seqlora.library.store import Library
from seqlora.settings import Settings
from seqlora.training import remarks
from seqlora.training.progress import Phase, run_to_end
from seqlora.training.result import describe_result
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, small_request

SETTINGS = Settings(steps=400, learning_rate=1e-2)


def curve(start: float, end: float, noise: float = 0.0, steps: int = 400) -> list[float]:
    rng = random.Random(0)
    return [start + (end - start) * i / steps + noise * rng.gauss(0, 1) for i in range(steps)]


def told(losses: list[float], settings: Settings = SETTINGS) -> dict[int, str]:
    """By the number of steps that were done."""
    found = {done: remarks.while_training(losses[:done], settings) for done in range(1, len(losses) + 1)}
    return {done: note for done, note in found.items() if note}


def test_a_loss_that_falls_is_nothing_to_tell():
    assert told(curve(1.0, 0.5)) == {} and told(curve(1.0, 0.2, noise=0.2)) == {}


def test_a_loss_that_rises_is_told_early_and_again():
    notes = told(curve(0.5, 1.0, noise=0.01))
    assert list(notes) == [40, 100, 200, 300]
    assert notes[100].startswith("The loss has risen from 0.5") and "learning_rate (0.01) is probably too high" in notes[100]


def test_a_loss_that_stays_is_told_halfway():
    notes = told([0.5] * 400)
    assert list(notes) == [200, 300] and notes[200].startswith(
        "The loss has not fallen by step 200 (0.5000 at first, 0.5000 now)"
    )


def test_noise_is_not_taken_for_a_rise():
    assert not [note for note in told(curve(1.0, 0.95, noise=0.5)).values() if "risen" in note]


def test_the_ends_of_a_curve_never_overlap():
    assert remarks.first_and_last([3.0]) == (3, 3) and remarks.first_and_last([1.0, 2.0]) == (1, 2)
    assert remarks.first_and_last([1.0, 5.0, 2.0]) == (1, 2)
    assert remarks.first_and_last([1.0] * 10 + [2.0] * 10) == (1, 2)
    assert remarks.first_and_last([1.0] * 30 + [9.0] * 240 + [2.0] * 30) == (1, 2)
    assert remarks.first_and_last([]) == (0, 0)


@pytest.mark.parametrize(
    "with_it,found,said",
    [
        (0.30, "learned", ""),
        (
            0.39,
            "hardly",
            "Hardly anything was learned: on its own pictures the model's error is 0.3900 with it, 0.4000 without.",
        ),
        (0.40, "hardly", "Teach it anew with a higher learning_rate (now 0.01) or more steps (now 400)."),
        (0.42, "spoilt", "It is worse than nothing: on its own pictures the model's error is 0.4200 with it, 0.4000 without."),
        (9e9, "spoilt", "Teach it anew with a lower learning_rate (now 0.01)."),
    ],
)
def test_a_concept_is_judged_by_what_it_does_to_its_own_pictures(with_it: float, found: str, said: str):
    assert remarks.verdict(0.4, with_it) == found
    told = remarks.at_end(0.4, with_it, SETTINGS)
    assert said in told and bool(told) == bool(said)


@pytest.mark.parametrize("rate,found", [(1e-2, "learned"), (1e-7, "hardly"), (1.0, "spoilt")])
def test_a_training_is_judged_and_so_is_what_is_found_again(tmp_path, rate: float, found: str):
    library = Library.create(tmp_path / "lib", 2, 4, "attention and mlp")
    settings = QUICK.with_(steps=60, learning_rate=rate, basis_learning_rate=min(0.3 * rate, 3e-3))
    before = [run_to_end(train_steps(library, small_request("cat"), settings, SmallModel()))]
    again = run_to_end(train_steps(before[0].library, small_request("cat"), settings, SmallModel()))
    assert again.reused and before[0].report.verdict == again.report.verdict == found


@pytest.mark.parametrize(
    "family,rate,said",
    [
        ("sd15", 2e-2, "learning_rate is 0.02, where 0.0001 is usual for SD 1.x: this may end in noise"),
        ("demo", 1e-4, "learning_rate is 0.0001, where 0.02 is usual for SeqLoRA Demo Model: this will hardly learn"),
        ("sdxl", 4e-4, ""),
        ("flux", 2e-5, ""),
        ("other", 1.0, ""),  # nothing is known of it
    ],
)
def test_a_rate_that_does_not_suit_is_told_before_the_first_step(family: str, rate: float, said: str):
    note = remarks.of_rate(Settings(learning_rate=rate), family)
    assert note.startswith(said) and bool(note) == bool(said)


def test_a_training_says_so_while_it_goes_on_and_in_its_report(tmp_path):
    """At a rate of 1 this model's loss grows."""
    library, notes = Library.create(tmp_path / "lib", 2, 4, "attention and mlp"), []
    settings = QUICK.with_(steps=60, learning_rate=1.0, basis_learning_rate=0.0)
    model = SmallModel()
    model.family = "sd15"
    result = run_to_end(
        train_steps(library, small_request("cat"), settings, model),
        lambda progress: notes.append((progress.phase, progress.note)) if progress.note else None,
    )
    phases = [phase for phase, _ in notes]
    assert phases[0] == Phase.MEASURING and Phase.TRAINING in phases and phases[-1] == Phase.SAVING
    assert "this may end in noise" in notes[0][1] and notes[-1][1].startswith("It is worse than nothing: on its own pictures")
    report = describe_result(result)
    assert report["error_with"] > report["error_without"] and report["verdict"] == "spoilt"
    assert "this may end in noise" in report["note"] and notes[-1][1] in report["note"]
