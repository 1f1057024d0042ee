"""What a step costs beside plain LoRA's, first of a library and after all that a run taught: steps taken in turn."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.step_cost import step_seconds
from seqlora.training.trainer import train_concept

from . import subjects
from .experiment import Bench
from .methods import METHODS
from .sequence import TARGETS, Run

STEPS = 40


def step_cost(bench: Bench, run: Run, tuned: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Ratios of median seconds: `first`, ours over plain LoRA's in an empty library; `late`, ours after the run's concepts over
    ours in an empty one."""
    *_, lessons = run.teach()
    total = sum(lessons.moments[1:], lessons.moments[0])
    examples = subjects.training_examples(bench.model, run.emoji[0], run.seed)
    layers = bench.model.layers(TARGETS)
    runs = {}
    for name, key, earlier, moments in (
        ("lora", "lora", [], None),
        ("first", "seqlora", [], None),
        ("late", "seqlora", lessons.concepts, total),
    ):
        settings = METHODS[key].settings(tuned[key]).with_(steps=100 * STEPS)
        runs[name] = train_concept(
            bench.model.denoiser, layers, examples, settings, run.ranks, earlier, bench.prior, moments, capacity=run.planned
        )
    seconds = step_seconds(runs, STEPS)
    return {
        "first": seconds["first"] / seconds["lora"],
        "late": seconds["late"] / seconds["first"],
        "concepts": len(lessons.concepts),
    }
