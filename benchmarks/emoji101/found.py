"""Filed runs, gathered by method: what the page's tables ask them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from . import records
from .methods import METHODS
from .subjects import concepts

PLUS_MINUS = "\u00b1"
OUTDATED = "\u2020"  # after the title of a row whose runs the code of today would teach otherwise


@dataclass
class Found:
    """All seeds of one method, taught with the same settings."""

    key: str
    tuned: Mapping[str, float] = field(default_factory=dict)
    seeds: list[dict[str, Any]] = field(default_factory=list)  # what each measured
    numbers: list[int] = field(default_factory=list)  # of the seeds
    counts: list[int] = field(default_factory=list)  # concepts that each taught
    paths: list[Path] = field(default_factory=list)
    outdated: str = ""  # in what the code of today differs

    @property
    def title(self) -> str:
        return METHODS[self.key].title + (f" {OUTDATED}" if self.outdated else "")

    def at(self, size: int, what: str, place: slice = slice(None)) -> list[Any]:
        """A figure of every emoji when `size` concepts are summed; of those only that have this `place` in the order."""
        return self._of_emoji([seed["sizes"].get(str(size), {}).get(what, []) for seed in self.seeds], place)

    def alone(self, size: int, what: str, place: slice = slice(None)) -> list[Any]:
        """The same emoji, each with only its own adapter."""
        return self._of_emoji([seed["alone"][what][:size] if str(size) in seed["sizes"] else [] for seed in self.seeds], place)

    def _of_emoji(self, seeds: Sequence[Sequence[Any]], place: slice) -> list[Any]:
        """One value an emoji: the mean over the seeds that taught it, because these are not independent of each other."""
        found: dict[str, list[Any]] = {}
        for number, values in zip(self.numbers, seeds, strict=True):
            for emoji, value in zip(concepts(len(values), number)[place], values[place], strict=True):
                found.setdefault(emoji.name, []).append(value)
        return [np.mean(values, axis=0).tolist() for values in found.values()]

    def shared(self, other: Found, size: int) -> Found:
        """The seeds in which both were measured with `size` concepts."""
        theirs = {number for number, seed in zip(other.numbers, other.seeds, strict=True) if str(size) in seed["sizes"]}
        chosen = [i for i, number in enumerate(self.numbers) if number in theirs and str(size) in self.seeds[i]["sizes"]]
        return replace(
            self,
            seeds=[self.seeds[i] for i in chosen],
            numbers=[self.numbers[i] for i in chosen],
            counts=[self.counts[i] for i in chosen],
            paths=[self.paths[i] for i in chosen],
        )

    def prior(self, size: int) -> list[float]:
        """Share of the base model's own emoji that it still draws, relative to the base model."""
        return [s["sizes"][str(size)]["prior"] / s["prior of the base"] for s in self.seeds if str(size) in s["sizes"]]

    def change(self, size: int, place: slice = slice(None)) -> list[float]:
        """Norm of every concept's change of all weights."""
        seeds = [s["change"][:size] if "change" in s and str(size) in s["sizes"] else [] for s in self.seeds]
        return self._of_emoji(seeds, place)

    def forgetting(self, size: int) -> list[list[float]]:
        """(concepts, times) denoising loss with all on, minus alone."""
        pairs = zip(self.at(size, "loss"), self.alone(size, "loss"), strict=True)
        return [[after - before for after, before in zip(a, b, strict=True)] for a, b in pairs]

    def kept_in(self, size: int) -> float | None:
        """Identity of concepts beside random others, as a share of what the same reach alone."""
        pairs = [pair for seed in self.each("subset pairs") for pair in seed.get(str(size), [])]
        if not learned([alone for _, alone in pairs]):
            return None
        return sum(beside for beside, _ in pairs) / sum(alone for _, alone in pairs)

    def each(self, what: str) -> list[Any]:
        return [seed[what] for seed in self.seeds if what in seed]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval (Student); not a number where the values are fewer than two."""
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    error = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(error)


def learned(alone: Sequence[float]) -> bool:
    """Whether concepts look like themselves at all: of nothing, no share can be kept."""
    mean, error = mean_and_error(alone)
    return bool(alone) and not mean <= error


def show(values: Sequence[float], digits: int = 3) -> str:
    """Mean with its interval; of a few values, such as one a seed, their range instead."""
    if not values:
        return ""
    mean, error = mean_and_error(values)
    if len(values) >= 8:
        return f"{mean:.{digits}f} {PLUS_MINUS} {error:.{digits}f}"
    return f"{mean:.{digits}f}" + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else "")


def lead(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Differences on the same concepts and seeds: most of an interval is between emoji, which both share."""
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def read(folder: Path, architecture: str, taught: int | None = None) -> dict[str, Found]:
    """All seeds of each method: the runs with that many concepts, or else with the most that there are; those that the code of
    today would teach alike, where there are any. A variant whose row was tuned anew since is left out: it would differ in more
    than one thing."""
    found: dict[str, Found] = {}
    runs = [run for run in records.read_runs(folder, architecture) if taught in (None, run["concepts"])]
    for key in METHODS:
        own = [run for run in runs if run["method"] == key]
        fresh = [run for run in own if not run["outdated"]] or [run for run in own if run["hash"] == own[-1]["hash"]]
        longest = {run["seed"]: run for run in sorted(fresh, key=lambda run: run["concepts"])}
        for seed, run in sorted(longest.items()):
            method = found.setdefault(key, Found(key, run["tuned"], outdated=run["outdated"]))
            method.seeds.append(run["measures"])
            method.numbers.append(seed)
            method.counts.append(run["concepts"])
            method.paths.append(run["path"])
    return {
        key: method
        for key, method in found.items()
        if (like := METHODS[key].tuned_like) not in found or METHODS[key].keeps or method.tuned == found[like].tuned
    }
