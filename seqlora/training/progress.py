"""How a training tells what it does, and how it is run to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from .snapshot import TrainingSnapshot


class Phase(str, Enum):
    """Where a training is. The values are what the editor knows them by."""

    STARTING = "starting"
    WAITING = "waiting"  # for another training into the same library
    MEASURING = "measuring"
    TRAINING = "training"
    SAVING = "saving"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def runs(self) -> bool:
        return self not in (Phase.FINISHED, Phase.CANCELLED, Phase.FAILED)


@dataclass(frozen=True)
class Progress:
    phase: Phase
    step: int
    steps: int
    loss: float | None = None
    penalty: float | None = None
    note: str = ""  # a sentence for the user
    snapshot: TrainingSnapshot | None = None  # the concept as it is now; good until the trainer goes on

    def __str__(self) -> str:
        if self.phase is Phase.WAITING:
            return "waiting for another training"
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        return f"{self.phase.value} {self.step}/{self.steps}{loss}"


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
