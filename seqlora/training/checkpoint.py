"""A running training on disk: one that was cancelled, or whose process died, goes on where it was, bit for bit.

One safetensors file holds both factors, what both levels of the optimiser remember, the random generator, the order of the
pictures, the earlier concepts that are on, the losses and the measured moments. It is bound to what the training depends on
and carries a digest of its contents: a file that does not fit is set aside, never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SeqLoRAError
from ..io.bounded_json import parse_json
from ..io.safetensors_file import read_tensors, write_tensors
from ..library.moments_file import FELT, tensors_of
from ..method.moments import Moment, Moments

FORMAT = 1
FOLDER = "checkpoints"  # inside the library's; there only while something is unfinished
MINUTES = 2.0
MAX_BYTES = 32 << 30
ANEW = "it was set aside and the training starts anew"


@dataclass(frozen=True)
class State:
    """A training after its last completed step."""

    place: dict[str, Any]  # "step" and what else JSON holds: counters, generator, order of pictures
    tensors: dict[str, Tensor]
    moments: Moments  # C_t


class Checkpoint:
    """Where one training is kept. Without a path it is kept nowhere.

    The trainer says how the state is read (`follow`), where it is after every completed step (`mark`), and whether the tensors
    are those of that step (`whole`); everything else happens here.
    """

    def __init__(self, path: Path | None = None, binding: str = "", minutes: float = MINUTES):
        self.path, self.binding, self.minutes = path, binding, minutes
        self.state: State | None = None  # to go on from
        self.step: int | None = None  # that the file holds
        self.whole = False
        self._place: dict[str, Any] = {}  # until a step is complete there is nothing to keep
        self._began = self._saved = time.monotonic()
        self._before = 0.0

    @property
    def seconds(self) -> float:
        """Spent on this training, also before it was taken up again."""
        return self._before + time.monotonic() - self._began

    def open(self) -> str:
        """Reads what is there into `state`. Returns "", or a sentence when it did not fit and was set aside."""
        if self.path is None or not self.path.exists():
            return ""
        try:
            self.state = read(self.path, self.binding)
            self.step, self._before = int(self.state.place["step"]), float(self.state.place.get("seconds", 0))
            return ""
        except SeqLoRAError as error:
            with suppress(OSError):  # what cannot be moved away is written over
                os.replace(self.path, self.path.with_suffix(".set-aside"))
            return str(error)

    def follow(self, moments: Moments, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """`tensors()` gives the state's tensors as they are at the time, under names that stay the same."""
        self._moments, self._tensors = moments, tensors

    def mark(self, place: dict[str, Any]) -> str:
        """A step is complete. Saves when it is time to; returns "", or a sentence when the disk refused."""
        self._place, self.whole = place, True
        if self.minutes <= 0 or time.monotonic() - self._saved < 60 * self.minutes:
            return ""
        try:
            self.save()
        except SeqLoRAError as error:  # the training itself is well
            self._saved = time.monotonic()
            return str(error)
        return ""

    def save(self) -> None:
        """Writes the last completed step, unless it cannot be had or is no good: then the file stays as it is."""
        if self.path is None or not self.whole or not self._place:
            return
        tensors = {name: tensor.detach().cpu() for name, tensor in self._tensors().items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            return
        write(self.path, State(self._place | {"seconds": self.seconds}, tensors, self._moments), self.binding)
        self.step, self._saved = self._place["step"], time.monotonic()

    def remove(self) -> None:
        """The training is over. Also what processes left that died while they wrote: who trains is the library's one writer."""
        if self.path is not None:
            with suppress(OSError):
                for gone in (self.path, *self.path.parent.glob(".*.tmp")):
                    gone.unlink(missing_ok=True)
                self.path.parent.rmdir()  # if it was the last


def write(path: Path, state: State, binding: str) -> None:
    tensors = state.tensors | tensors_of(state.moments)
    about = {"place": state.place, "binding": binding, "format": FORMAT, "felt": list(state.moments.felt)}
    about |= {"input_of": state.moments.input_of, "output_energy": state.moments.output_energy}
    text = json.dumps(about)
    write_tensors(path, tensors, {"seqlora": text, "digest": _digest(text, tensors)})


def read(path: Path, binding: str) -> State:
    """Raises SeqLoRAError for a file that is damaged, of another version, or bound to something else."""
    tensors, metadata = read_tensors(path, MAX_BYTES, ANEW)
    text = metadata.get("seqlora", "")
    if metadata.get("digest") != _digest(text, tensors):
        raise SeqLoRAError(f"{path} is damaged; {ANEW}.")
    try:
        return _parsed(path, parse_json(text), binding, tensors)
    except SeqLoRAError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a digest can be forged
        raise SeqLoRAError(f"{path} is damaged ({error}); {ANEW}.") from error


def _parsed(path: Path, about: dict[str, Any], binding: str, tensors: dict[str, Tensor]) -> State:
    if about["format"] != FORMAT:
        raise SeqLoRAError(f"{path} was written by another version; {ANEW}.")
    if about["binding"] != binding:
        raise SeqLoRAError(f"{path} is of another state of the library; {ANEW}.")
    by_input, gammas = _take(tensors, about["input_of"].values()), _take(tensors, about["felt"], FELT)
    return State(about["place"], tensors, Moments(by_input, about["input_of"], about["output_energy"], gammas))


def _take(tensors: dict[str, Tensor], names: Iterable[str], kind: str = "") -> dict[str, Moment]:
    """As copies, because what was read shares one buffer that should not live for as long as these."""
    return {
        name: Moment(tensors.pop(f"{name}{kind}.sketch").clone(), tensors.pop(f"{name}{kind}.diagonal").clone())
        for name in dict.fromkeys(names)
    }


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
