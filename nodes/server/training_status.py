"""What a training tells whoever watches it: as it goes by events, and as a whole to whoever asks.

The host's worker trains and writes here, its server's thread reads; a lock lets both see whole states only, and what is sent
is a copy. A training is named by the id of its node, inside a subgraph a path of ids such as "12:5"; no request names a file.
The host looks at the origin of every request before it comes here.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from ...seqlora.errors import SeqLoRAError
from ...seqlora.training.progress import Phase, Progress
from ...seqlora.training.result import TrainResult
from .. import host

EVENT = "seqlora.training"
PAUSE = 0.2  # seconds between two events of one training
WINDOW = 50  # events over which the rate is taken
POINTS = 500  # of a curve
FIGURES = 20  # measurements of a training
BUDGET = 0.01  # most of a training's time that they may take together
REMEMBERED = 50  # trainings that have ended


class Curve:
    """[step, mean value] points of at most POINTS equal parts of what was added."""

    def __init__(self) -> None:
        self.points: list[list[float]] = []
        self._part, self._sum, self._count = 1, 0.0, 0

    def add(self, step: int, value: float) -> None:
        if self._count == 0:
            self.points.append([step, value])
        self._sum, self._count = self._sum + value, self._count + 1
        self.points[-1] = [step, _short(self._sum / self._count)]
        if self._count == self._part:
            self._sum, self._count = 0.0, 0
            if len(self.points) == POINTS:
                pairs = zip(self.points[::2], self.points[1::2], strict=True)
                self.points = [[later[0], _short((earlier[1] + later[1]) / 2)] for earlier, later in pairs]
                self._part *= 2


class Training:
    """The state of one training. All but `told` is called by the thread that trains."""

    def __init__(self, node: str, workflow: str, library: str, concept: str, subject: str):
        self.names = {"id": uuid.uuid4().hex, "node": node, "workflow": workflow}
        self.names |= {"library": library, "concept": concept, "subject": subject}
        self.phase, self.note, self.verdict, self.keep, self.reused = Phase.STARTING, "", "", False, False
        self.step = self.steps = 0
        self.loss: float | None = None
        self.preview_seconds = 0.0
        self._lock = threading.Lock()
        self._curve = Curve()
        self._figures: list[dict[str, Any]] = []
        self._previews: list[dict[str, Any]] = []
        self._earlier: Training | None = None  # of the same node; this one may go on from it
        self._new: dict[str, list[Any]] = {}
        self._said = 0.0  # when the last event was sent
        self._began = 0.0  # when the first step was done, on a clock that stands still during previews
        self._looked, self._looking, self._last_look = -1, 0.0, 0.0  # measurements: the last; seconds of all, of the last
        self._clock: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    @property
    def running(self) -> bool:
        return self.phase.runs

    def follow(self, progress: Progress) -> None:
        """Takes up what the trainer has just done; measures and sends when it is time to."""
        changed = False
        with self._lock:
            changed, self.phase = progress.phase != self.phase, progress.phase
            if progress.note:
                self.note = progress.note
            self.step, self.steps = progress.step, progress.steps
            if self.phase is Phase.TRAINING:
                self._take_up(progress.step)
            if progress.loss is not None:
                self.loss = _short(progress.loss)
                self._curve.add(progress.step, progress.loss)
                self._add("losses", [progress.step, self.loss])
        figures = self._look(progress)
        if figures:
            with self._lock:
                self._figures.append(figures)
                self._add("figures", figures)
        self._tell(now=changed)

    def show(self, preview: Mapping[str, Any]) -> None:
        with self._lock:
            self._previews.append(dict(preview))
            self._add("previews", dict(preview))
            self.preview_seconds = round(self.preview_seconds + preview["seconds"], 3)
        self._tell()

    def remark(self, note: str) -> None:
        with self._lock:
            self.note = note
        self._tell(now=True)

    def end(self, phase: Phase, note: str = "", taught: TrainResult | None = None) -> None:
        with self._lock:
            last = self.note if taught and self.note not in note else ""  # said meanwhile, and still worth knowing
            self.phase, self.note, self._earlier = phase, " ".join(filter(None, (last, note))) or self.note, None
            self.verdict = taught.report.verdict if taught else ""
            if taught and taught.reused:
                self.reused = True
                self.note = "It was taught before with the same inputs; nothing was done."
                self.step, self.steps = taught.report.steps, taught.record.settings["steps"]
                for number, loss in enumerate(taught.losses, 1):
                    self.loss = _short(loss)
                    step = round(number * self.step / len(taught.losses))
                    self._curve.add(step, self.loss)
                    self._add("losses", [step, self.loss])
        self._tell(now=True)

    def told(self) -> dict[str, Any]:
        """The whole state."""
        with self._lock:
            histories: dict[str, list[Any]] = {
                "losses": self._curve.points,
                "figures": self._figures,
                "previews": self._previews,
            }
            return self._state() | {name: list(points) for name, points in histories.items()}

    def _look(self, progress: Progress) -> dict[str, Any] | None:
        """The next figures, if they are due and what they cost is within the budget."""
        if progress.snapshot is None:
            return None
        began = time.monotonic()
        training = began - self.preview_seconds
        self._began = self._began or training
        due = progress.step * FIGURES // progress.steps
        if due <= self._looked or self._looking + self._last_look > BUDGET * (training - self._began):
            return None
        orthogonality, crosstalk = progress.snapshot.figures()
        self._looked, self._last_look = due, time.monotonic() - began
        self._looking += self._last_look
        orthogonality = _short(orthogonality)
        return {"step": progress.step, "orthogonality": orthogonality, "crosstalk": crosstalk and _short(crosstalk)}

    def _state(self) -> dict[str, Any]:
        rate = self._rate() if self.phase is Phase.TRAINING else None
        return self.names | {
            "phase": self.phase.value,
            "step": self.step,
            "steps": self.steps,
            "loss": self.loss,
            "rate": rate,
            "left": round((self.steps - self.step) / rate, 1) if rate else None,
            "keep": self.keep,
            "reused": self.reused,
            "note": self.note,
            "verdict": self.verdict,
            "preview_seconds": self.preview_seconds,
        }

    def _take_up(self, step: int) -> None:
        """At the first step: what was seen of the same concept before this step, in the training that was cut off there."""
        earlier, self._earlier = self._earlier, None
        if earlier is None or any(earlier.names[name] != self.names[name] for name in ("library", "concept")):
            return
        for at, loss in earlier._curve.points:
            if at < step:
                self._curve.add(int(at), loss)
                self._add("losses", [int(at), loss])
        for name, known, seen in (
            ("figures", self._figures, earlier._figures),
            ("previews", self._previews, earlier._previews),
        ):
            for entry in (entry for entry in seen if entry["step"] < step):
                known.append(entry)
                self._add(name, entry)

    def _rate(self) -> float | None:
        if len(self._clock) < 2:
            return None
        (began, first), (now, last) = self._clock[0], self._clock[-1]
        return _short((last - first) / (now - began)) if now > began and last > first else None

    def _add(self, name: str, entry: Any) -> None:
        self._new.setdefault(name, []).append(entry)

    def _tell(self, now: bool = False) -> None:
        time_now = time.monotonic()
        if not now and time_now - self._said < PAUSE:
            return
        with self._lock:
            self._said = time_now
            if self.phase is Phase.TRAINING:
                self._clock.append((time_now - self.preview_seconds, self.step))
            new = {name: self._new.get(name, []) for name in ("losses", "figures", "previews")}
            self._new = {}
            state = self._state() | new
        host.send(EVENT, state)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


TRAININGS: dict[tuple[str, str], Training] = {}  # by workflow and node; the last one of each


@contextmanager
def watched(node: str | None, workflow: str, library: str, concept: str, subject: str) -> Iterator[Training]:
    """A training that can be watched from here on; how it ends is told as well."""
    training = Training(node or "", workflow, library, concept, subject)
    training._earlier = TRAININGS.pop((workflow, training.names["node"]), None)
    ended = [key for key, other in list(TRAININGS.items()) if not other.running]
    for key in ended[: max(0, len(ended) - REMEMBERED + 1)]:
        TRAININGS.pop(key, None)
    TRAININGS[workflow, training.names["node"]] = training
    training._tell(now=True)
    try:
        yield training
    except host.Interrupted:
        training.end(Phase.CANCELLED)
        raise
    except Exception as error:
        training.end(Phase.FAILED, str(error) if isinstance(error, SeqLoRAError) else f"{type(error).__name__}: {error}")
        raise


async def trainings(request: web.Request) -> web.Response:
    return web.json_response({"trainings": [training.told() for training in list(TRAININGS.values())]})


async def keep(request: web.Request) -> web.Response:
    node = request.match_info["node"]
    found = [one for one in list(TRAININGS.values()) if one.names["node"] == node and one.running]
    if not found:
        return web.json_response({"error": f"No training runs on node '{node}'; it may have ended."}, status=404)
    training = found[-1]
    if training.phase is not Phase.TRAINING:
        return web.json_response({"error": f"'{training.names['concept']}' has made no step yet; wait, or cancel."}, status=409)
    training.keep = True
    return web.json_response(training.told())


ROUTES = (("GET", "/seqlora/training", trainings), ("POST", "/seqlora/train/{node}/keep", keep))
