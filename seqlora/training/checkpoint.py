"""A running training on disk: one that was cancelled, or whose process died, goes on where it was, bit for bit.

One safetensors file holds both factors, what both levels of the optimiser remember, the random generator, the order of the
pictures, the earlier concepts that are on, the losses and the measured moments. It is bound to what the training depends on
and carries a digest of its contents: a file that does not fit is set aside, never used.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SeqLoRAError
from ..library.moments_file import header_of, moments_from, tensors_of
from ..method.moments import Moments
from ..settings import OPTIONS
from .bound_file import ANEW, read_bound, write_bound

logger = logging.getLogger("seqlora")

FOLDER = "checkpoints"  # inside the library's; there only while something is unfinished
MINUTES = OPTIONS["checkpoint_minutes"].default


@dataclass(frozen=True)
class State:
    """A training after its last completed step."""

    counters: dict[str, Any]  # "step" and what else JSON holds: passes, generator, order of pictures
    tensors: dict[str, Tensor]
    moments: Moments  # C_t


class Checkpoint:
    """Where one training is kept. Without a path it is kept nowhere."""

    def __init__(self, path: Path | None = None, binding: str = "", minutes: float = MINUTES):
        self.path, self.binding, self.minutes = path, binding, minutes
        self.step: int | None = None  # that the file holds
        self._began = self._saved = time.monotonic()
        self._before = 0.0

    @property
    def seconds(self) -> float:
        """Spent on this training, also before it was taken up again."""
        return self._before + time.monotonic() - self._began

    def load(self) -> tuple[State | None, str]:
        """What there is to go on from, and a sentence where something did not fit and was set aside."""
        if self.path is None or not self.path.exists():
            return None, ""
        try:
            state = read(self.path, self.binding)
        except SeqLoRAError as error:
            with suppress(OSError):  # what cannot be moved away is written over
                os.replace(self.path, self.path.with_suffix(".set-aside"))
            return None, str(error)
        self.step, self._before = int(state.counters["step"]), float(state.counters.get("seconds", 0))
        return state, ""

    def save_if_due(self, state: Callable[[], State | None]) -> str:
        """Saves when it is time to; returns "", or a sentence when the disk refused."""
        if self.minutes <= 0 or time.monotonic() - self._saved < 60 * self.minutes:
            return ""
        try:
            self.save(state())
        except SeqLoRAError as error:  # the training itself is well
            self._saved = time.monotonic()
            return str(error)
        return ""

    def save(self, state: State | None) -> None:
        """Writes the state, unless there is none or it is no good: then the file stays as it is."""
        if self.path is None or state is None:
            return
        tensors = {name: tensor.detach().cpu() for name, tensor in state.tensors.items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            return
        write(self.path, State(state.counters | {"seconds": self.seconds}, tensors, state.moments), self.binding)
        self.step, self._saved = state.counters["step"], time.monotonic()
        logger.info("checkpoint of step %d written, %.0f s in", self.step, self.seconds)

    def remove(self) -> None:
        """The training is over. Also what processes left that died while they wrote: who trains is the library's one writer."""
        if self.path is not None:
            with suppress(OSError):
                for gone in (self.path, *self.path.parent.glob(".*.tmp")):
                    gone.unlink(missing_ok=True)
                self.path.parent.rmdir()  # if it was the last


def write(path: Path, state: State, binding: str) -> None:
    header = {"place": state.counters} | header_of(state.moments)
    write_bound(path, binding, header, state.tensors | tensors_of(state.moments))


def read(path: Path, binding: str) -> State:
    """Raises SeqLoRAError for a file that is damaged, of another version, or bound to something else."""
    header, tensors = read_bound(path, binding)
    try:
        moments = moments_from(tensors, header)
        return State(header["place"], tensors, moments)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a digest can be forged
        raise SeqLoRAError(f"{path} is damaged ({error})", ANEW) from error
