"""How a training tells what it does, and how it is run to its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from .snapshot import TrainingSnapshot


@dataclass(frozen=True)
class Progress:
    phase: str  # "measuring", "training" or "saving", or a sentence on what it waits for
    step: int
    steps: int
    loss: float = math.nan
    penalty: float = math.nan
    note: str = ""  # a sentence for the user
    live: TrainingSnapshot | None = None  # the concept as it is now; good until the trainer goes on


R = TypeVar("R")
TrainingSteps = Generator[Progress, str | None, R]  # takes "keep", which ends a training after the step that was reported last


def run_to_end(steps: TrainingSteps[R], tell: Callable[[Progress], str | None] = lambda progress: None) -> R:
    """Runs a generator to its end and returns its result; `tell` sees the progress and may answer "keep"."""
    answer = None
    with closing(steps):
        while True:
            try:
                progress = steps.send(answer)
            except StopIteration as end:
                return end.value
            answer = tell(progress)
