"""What a step costs beside plain LoRA's, first of a library and after all that a run taught: steps taken in turn."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.step_cost import started, step_seconds
from seqlora.training.start import Surroundings

from . import subjects
from .experiment import Bench
from .methods import METHODS
from .sequence import TARGETS, Run

ROUNDS = 12


def step_cost(bench: Bench, run: Run, tuned: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Ratios of median seconds: `first`, ours over plain LoRA's in an empty library; `late`, ours after the run's concepts over
    ours in an empty one."""
    *_, lessons = run.teach()
    total = sum(lessons.moments[1:], lessons.moments[0])
    examples = subjects.training_examples(bench.model, run.emoji[0], run.seed)
    layers = bench.model.layers(TARGETS)
    first = Surroundings((), bench.prior, None, run.planned)
    late = Surroundings(lessons.concepts, bench.prior, total, run.planned)
    runs = {}
    for name, key, beside in (("lora", "lora", first), ("first", "seqlora", first), ("late", "seqlora", late)):
        settings = METHODS[key].settings(tuned[key]).with_(steps=10_000)
        runs[name] = started(bench.model.denoiser, layers, examples, settings, run.ranks, beside)
    seconds = step_seconds(runs, ROUNDS)
    return {
        "first": seconds["first"] / seconds["lora"],
        "late": seconds["late"] / seconds["first"],
        "concepts": len(lessons.concepts),
    }
