"""What came out of a training: the library with its concept, and what to report of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..library.manifest import Record
from ..library.store import Library
from . import remarks


@dataclass(frozen=True)
class TrainingReport:
    """Figures of one training, as they are kept with the concept and told to whoever asked for it."""

    steps: int
    seconds: float  # also those before it was taken up again
    first_loss: float  # means, see `remarks.first_and_last`
    last_loss: float
    captions_given_the_trigger: int
    largest_overlap_entry: float  # of |B_i'B| with any earlier concept i
    largest_orthonormality_error: float  # of |B'B - I|
    captured_energy: float  # tr(B'CB) / tr(C)
    change_norm: float  # ||A B'||_F
    full_layers: int
    precision: str
    # What is not so every time, and is left out where it is not.
    error_without: float | None = None  # mean loss on the same noised pictures, without the concept and with it
    error_with: float | None = None
    model_family: str | None = None
    chosen_automatically: Sequence[str] = ()  # settings that were left to the model
    ended_early_at: int | None = None  # step
    note: str = ""  # sentences for the user
    resumed_at: int | None = None  # step
    layers_left_out: int | None = None  # that do not run on such inputs or reach no output
    adopted_from: str | None = None  # a LoRA file
    kept: float | None = None  # how much of what that LoRA does to the model's predictions; 1 is all

    @property
    def verdict(self) -> str:
        """Whether it was learned, see `remarks.verdict`; "" for a concept of before this was measured."""
        if self.error_without is None or self.error_with is None:
            return ""
        return remarks.verdict(self.error_without, self.error_with)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", (), [])}

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> TrainingReport:
        """Raises TypeError where a figure is missing."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in figures.items() if name in known})


@dataclass(frozen=True)
class TrainResult:
    library: Library
    record: Record
    losses: Sequence[float]
    report: TrainingReport
    reused: bool = False  # the same request had been taught before

    @classmethod
    def again(cls, library: Library, record: Record) -> TrainResult:
        """What is known of a concept that was taught earlier: its losses as `thinned` left them."""
        return cls(library, record, record.metrics.get("losses", []), TrainingReport.from_dict(record.metrics), reused=True)


def describe_result(result: TrainResult) -> dict[str, Any]:
    """What was taught, with the settings that were used, and the figures."""
    record, library = result.record, result.library
    described = {
        "library": library.path.name,
        "concept": record.name,
        "trigger": record.trigger,
        "class_word": record.class_word,
        "number": record.id,
        "file": record.file,
        "settings": dict(record.settings),
    } | result.report.to_dict()
    described |= {"verdict": result.report.verdict} if result.report.verdict else {}
    return described | {"reused": True} if result.reused else described


def thinned(losses: Sequence[float], points: int = 200) -> list[float]:
    """The curve as means of at most so many equal parts."""
    count = min(len(losses), points)
    edges = [len(losses) * i // count for i in range(count + 1)] if count else []
    return [_mean(losses[start:stop]) for start, stop in zip(edges, edges[1:], strict=False)]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(len(values), 1), 6)
