"""docs/results.md and its pictures, from what the benchmark left on disk. Nothing here is typed by hand.

python -m benchmarks.emoji101.results
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .experiment import SIZES, SUBSETS, TUNING
from .measures import TIMES
from .methods import BATCH_SIZE, CAPACITY, KEPT, METHODS, PUBLISHED, RANK, STEPS
from .model import LOADERS
from .subjects import concepts

ROOT = Path(__file__).parents[2]
DEFAULT = "seqlora"
PLUS_MINUS = "\u00b1"


@dataclass
class Found:
    """All seeds of one method at one planned number of concepts."""

    key: str
    tuned: Mapping[str, float] = field(default_factory=dict)
    seeds: list[dict[str, Any]] = field(default_factory=list)  # what each measured
    numbers: list[int] = field(default_factory=list)  # of the seeds
    counts: list[int] = field(default_factory=list)  # concepts that each taught
    folders: list[Path] = field(default_factory=list)

    def at(self, size: int, what: str) -> list[Any]:
        """A figure of every emoji when `size` concepts are summed."""
        return self._of_emoji([seed["sizes"].get(str(size), {}).get(what, []) for seed in self.seeds])

    def alone(self, size: int, what: str) -> list[Any]:
        """The same emoji, each with only its own adapter."""
        return self._of_emoji([seed["alone"][what][:size] if str(size) in seed["sizes"] else [] for seed in self.seeds])

    def _of_emoji(self, seeds: Sequence[Sequence[Any]]) -> list[Any]:
        """One value an emoji: the mean over the seeds that taught it, because these are not independent of each other."""
        found: dict[str, list[Any]] = {}
        for number, values in zip(self.numbers, seeds, strict=True):
            for emoji, value in zip(concepts(len(values), number), values, strict=True):
                found.setdefault(emoji.name, []).append(value)
        return [np.mean(values, axis=0).tolist() for values in found.values()]

    def shared(self, other: Found, size: int) -> Found:
        """The seeds in which both were measured with `size` concepts."""
        theirs = {number for number, seed in zip(other.numbers, other.seeds, strict=True) if str(size) in seed["sizes"]}
        chosen = [i for i, number in enumerate(self.numbers) if number in theirs and str(size) in self.seeds[i]["sizes"]]
        seeds, numbers, counts, folders = (
            [values[i] for i in chosen]  # type: ignore[index]
            for values in (self.seeds, self.numbers, self.counts, self.folders)
        )
        return replace(self, seeds=seeds, numbers=numbers, counts=counts, folders=folders)

    def prior(self, size: int) -> list[float]:
        """Share of the base model's own emoji that it still draws, relative to the base model."""
        return [s["sizes"][str(size)]["prior"] / s["prior of the base"] for s in self.seeds if str(size) in s["sizes"]]

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
    """Mean and half the width of its 95 % confidence interval; Student's quantile by its expansion in 1/n, good from 8 on."""
    if len(values) < 8:
        return (statistics.fmean(values) if values else math.nan), math.nan
    z, free = statistics.NormalDist().inv_cdf(0.975), len(values) - 1
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return statistics.fmean(values), student * statistics.stdev(values) / math.sqrt(len(values))


def learned(alone: Sequence[float]) -> bool:
    """Whether concepts look like themselves at all: of nothing, no share can be kept."""
    mean, error = mean_and_error(alone)
    return bool(alone) and not mean <= error


def show(values: Sequence[float], digits: int = 3) -> str:
    """Mean with its interval; of a few values, such as one a seed, their range instead."""
    if not values:
        return ""
    mean, error = mean_and_error(values)
    if error == error:
        return f"{mean:.{digits}f} {PLUS_MINUS} {error:.{digits}f}"
    return f"{mean:.{digits}f}" + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else "")


def read(out: Path, architecture: str, taught: int | None = None) -> dict[str, Found]:
    """All seeds of each method: the runs with that many concepts, or else with the most that there are. A variant whose row was
    tuned anew since is left out: it would differ in more than one thing."""
    found: dict[str, Found] = {}
    for key in METHODS:
        notes = [(p, *map(int, p.stem.rsplit("-", 2)[1:])) for p in (out / architecture).glob(f"{key}-[0-9]*-[0-9]*.json")]
        longest: dict[int, tuple[int, Path]] = {}
        for path, seed, count in notes:
            if taught not in (None, count):
                continue
            longest[seed] = max(longest.get(seed, (0, path)), (count, path))
        for seed in sorted(longest):
            count, path = longest[seed]
            note = json.loads(path.read_text())
            method = found.setdefault(key, Found(key, note["tuned"]))
            folder = out / note["folder"]
            method.seeds.append(json.loads((folder / f"measures-{count}.json").read_text()))
            method.numbers.append(seed)
            method.counts.append(count)
            method.folders.append(folder)
    return {
        key: method
        for key, method in found.items()
        if (like := METHODS[key].tuned_like) not in found or METHODS[key].keeps or method.tuned == found[like].tuned
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def sizes_of(found: Mapping[str, Found]) -> list[int]:
    return [n for n in SIZES if any(f.at(n, "cosine") for f in found.values())]


def kept(found: Found, size: int) -> float:
    """Identity of the sum, as a share of the same concepts' alone."""
    return statistics.fmean(found.at(size, "cosine")) / statistics.fmean(found.alone(size, "cosine"))


def identity(found: Mapping[str, Found], size: int) -> Iterator[str]:
    sizes = sizes_of(found)
    shares = [n for n in sizes if n >= size]
    head = ["method", f"alone, of {size}", *[f"{n} summed" for n in sizes], *[f"kept at {n}" for n in shares]]
    group = ""
    rows = []
    for key, method in found.items():
        if METHODS[key].group != group:
            group = METHODS[key].group
            rows.append([f"**{group}**", *[""] * (len(head) - 1)])
        cells = [show(method.at(n, "cosine")) for n in sizes]
        if METHODS[key].together:  # it has no concept alone
            rows.append([METHODS[key].title, "", *cells, *["" for _ in shares]])
            continue
        whole = [f"{kept(method, n):.1%}" if learned(method.alone(n, "cosine")) else "" for n in shares]
        rows.append([METHODS[key].title, show(method.alone(size, "cosine")), *cells, *whole])
    yield from table(head, rows)


def ahead(found: Mapping[str, Found], sizes: Sequence[int]) -> Iterator[str]:
    """How far the default is ahead of each method, emoji by emoji: most of an interval is between emoji, which both share."""
    rows = []
    for key, method in found.items():
        pairs = [(found[DEFAULT].shared(method, n), method.shared(found[DEFAULT], n), n) for n in sizes]
        if key == DEFAULT or METHODS[key].together or not any(theirs.seeds for _, theirs, _ in pairs):
            continue
        gains = [
            [a - b for a, b in zip(ours.at(n, "cosine"), theirs.at(n, "cosine"), strict=True)] for ours, theirs, n in pairs
        ]
        rows.append([METHODS[key].title, *[show(gain) for gain in gains], *[show(theirs.prior(n)) for _, theirs, n in pairs]])
    head = ["method", *[f"ahead of it at {n}" for n in sizes], *[f"its base emoji kept at {n}" for n in sizes]]
    yield from table(head, rows)


def naming(found: Mapping[str, Found], size: int) -> Iterator[str]:
    """`found` holds runs of `size` concepts: crosstalk is over all that a run taught."""
    head = [
        "method",
        f"nearest of {size}",
        "named of 720",
        "named alone",
        "base emoji kept",
        "crosstalk",
        "crosstalk as the output feels it",
        "forgetting (loss)",
        "size of change",
    ]
    rows = []
    for key, method in found.items():
        if not method.at(size, "cosine"):
            continue
        lost = [statistics.fmean(row) for row in method.forgetting(size)] if _forgets(method, size) else []
        crosstalk = [seed["crosstalk"] for seed in method.seeds if "crosstalk" in seed]
        rows.append(
            [
                METHODS[key].title,
                show(method.at(size, "nearest")),
                show(method.at(size, "named")),
                "" if METHODS[key].together else show(method.alone(size, "named")),
                show(method.prior(size)),
                show(crosstalk, 4),
                show(method.each("crosstalk felt"), 4),
                show(lost, 4),
                show([value for seed in method.each("change") for value in seed], 2),
            ]
        )
    yield from table(head, rows)


def _forgets(method: Found, size: int) -> bool:
    return bool(method.at(size, "loss")) and not METHODS[method.key].together


def tuning(found: Mapping[str, Found], size: int) -> Iterator[str]:
    rows = []
    for key, method in found.items():
        like, grid = METHODS[key].tuned_like, METHODS[key].grid
        ends = {} if like else {_setting(grid[0]): " (first tried)", _setting(grid[-1]): " (last tried)"}
        rows.append(
            [
                METHODS[key].title,
                _setting(method.tuned) + ends.get(_setting(method.tuned), ""),
                f"as {METHODS[like].title}" if like else ", ".join(_setting(s) for s in grid),
                "" if METHODS[key].together else show(method.alone(size, "cosine")),
            ]
        )
    yield from table(["method", "learning rate / penalty", "tried", f"identity alone, of {size}"], rows)


def _setting(setting: Mapping[str, float]) -> str:
    return " / ".join(f"{value:g}" for value in setting.values())


def by_time(found: Mapping[str, Found], size: int) -> Iterator[str]:
    rows = []
    for key, method in found.items():
        if _forgets(method, size):
            lost = method.forgetting(size)
            rows.append([METHODS[key].title, *[show([row[i] for row in lost], 4) for i in range(len(TIMES))]])
    yield from table(["method", *[f"t = {t}" for t in TIMES]], rows)


def together(found: Mapping[str, Found]) -> Iterator[str]:
    rows = []
    for key, method in found.items():
        subsets = ["" if share is None else f"{share:.1%}" for share in (method.kept_in(4), method.kept_in(16))]
        pairs = method.each("pairs")
        if not pairs:
            continue
        shares = [show([pair[what] for pair in pairs], 2) for what in ("both", "at least one", "swapped")]
        residual = [show([row[i] for seed in method.each("residual") for row in seed], 4) for i in (0, 1)]
        captured = show([value for seed in method.each("captured") for value in seed])
        rows.append([METHODS[key].title, *subsets, *shares, captured, *residual])
    head = ["method", "kept in 4", "kept in 16", "both", "one or both", "swapped"]
    yield from table([*head, "own energy captured", "residual energy, basis", "residual energy, disturbance"], rows)


def cost(found: Mapping[str, Found]) -> Iterator[str]:
    rows = []
    for key, method in found.items():
        full = [sum(1 for n in seed["full_layers"] if n) for seed in method.seeds]
        size = method.each("bytes")
        rows.append(
            [
                METHODS[key].title,
                f"{1000 * statistics.median(value for seed in method.seeds for value in seed['step_seconds']):.0f}",
                f"{size[0] / 1e6:.2f}" if size else "",
                f"{max(full)}",
            ]
        )
    yield from table(["method", "ms a step", "MB a concept (fp32)", "concepts with full layers"], rows)


def bars(found: Mapping[str, Found], common: Mapping[str, Found], size: int, steps: Mapping[str, float]) -> Iterator[str]:
    """What the project set out to reach, met or not. `common`: the runs of `size` concepts; `steps`: cost.py's ratios."""
    ours = found[DEFAULT]
    rows: list[list[str]] = []

    def bar(what: str, value: str, met: bool | None) -> None:
        rows.append([what, value, {True: "met", False: "**not met**", None: "not measured yet"}[met]])

    def kept_bar(key: str, count: int, wanted: float, what: str = "") -> None:
        what = what or f"identity kept at {count} concepts >= {wanted:.0%}, {METHODS[key].title}"
        if key not in found or not found[key].at(count, "cosine"):
            return bar(what, "", None)
        share = kept(found[key], count)
        bar(what, f"{share:.1%}", share >= wanted)

    kept_bar(DEFAULT, 32, 0.98)
    kept_bar(DEFAULT, 101, 0.95)
    kept_bar("planned-101", 101, 0.95)
    for count in (n for n in (16, 32, 64, 101) if ours.at(n, "cosine")):
        for published, who in ((True, "as published"), (False, "given our penalty")):
            wanted = [key for key in METHODS if _is_rival(key) and (METHODS[key].group == PUBLISHED) == published]
            rivals = {key: found[key].at(count, "cosine") for key in wanted if key in found and found[key].at(count, "cosine")}
            if not rivals:
                continue
            best = max(rivals, key=lambda key: statistics.fmean(rivals[key]))
            pair = ours.shared(found[best], count), found[best].shared(ours, count)
            one, other = (f.at(count, "cosine") for f in pair)
            (mean, error), (theirs, their_error) = mean_and_error(one), mean_and_error(other)
            bar(
                f"above every baseline {who}, {count} concepts, intervals apart; {len(rivals)} of {len(wanted)} were run",
                f"{show(one)} against {show(other)} ({METHODS[best].title}; seeds: {len(pair[0].seeds)})",
                mean - error > theirs + their_error,
            )
    crosstalk = {key: statistics.fmean(f.each("crosstalk")) for key, f in common.items() if f.each("crosstalk")}
    if {"lora", "oa", DEFAULT} <= set(crosstalk):
        share = crosstalk[DEFAULT] / crosstalk["lora"]
        bar("crosstalk at most 1/5 of independent LoRA's", f"{share:.2f} of it", share <= 0.2)
        below = crosstalk[DEFAULT] < crosstalk["oa"]
        bar("crosstalk below Orthogonal Adaptation's", f"{crosstalk[DEFAULT]:.4f} against {crosstalk['oa']:.4f}", below)
    for count in (4, 16):
        share = common[DEFAULT].kept_in(count) if DEFAULT in common else None
        what = f"kept in {SUBSETS} random subsets of {count}, of a library of {size} >= 97 %"
        bar(what, "", None) if share is None else bar(what, f"{share:.1%}", share >= 0.97)
    kept_bar(DEFAULT, 64, 0.97, "kept with all of a library of 64 >= 97 %")
    if ours.at(32, "cosine"):
        prior = ours.prior(32)
        bar("base captions at 32 concepts >= 95 %", show(prior), statistics.fmean(prior) >= 0.95)
    for what, key, most in (
        ("a step at most 1.10 x independent LoRA's, steps taken in turn", "first", 1.1),
        (f"a step after {steps.get('concepts', 0):.0f} concepts at most 1.15 x the first concept's", "late", 1.15),
    ):
        bar(what, f"{steps[key]:.2f} x", steps[key] <= most) if key in steps else bar(what, "", None)
    yield from table(["bar", "seen", ""], rows)


def _is_rival(key: str) -> bool:
    """Not ours, not a variant of ours, not taught all at once."""
    return METHODS[key].core != "seqlora" and not METHODS[key].together


def bound(found: Mapping[str, Found], size: int) -> Iterator[str]:
    rows = []
    for key, method in found.items():
        files = [folder / f"bound-{size}.json" for folder in method.folders]
        checks = [check for path in files if path.exists() for check in json.loads(path.read_text())]
        for source in dict.fromkeys(check["moments"] for check in checks):
            chosen = [check for check in checks if check["moments"] == source]
            rows.append(
                [
                    METHODS[key].title,
                    source,
                    f"{len(chosen)}",
                    f"{statistics.fmean(c['within'] for c in chosen):.2%}",
                    f"{statistics.fmean(c['within'] >= 0.95 for c in chosen):.1%}",
                    f"{statistics.fmean(c['of_bound'] for c in chosen):.3f}",
                    f"{max(c['constant'] for c in chosen):.2f}",
                ]
            )
    head = [
        "method",
        "moments",
        "layers x concepts",
        "rows within",
        "layers where >= 95 % are",
        "measured / bound",
        "largest K",
    ]
    yield from table(head, rows)


def convergence(found: Mapping[str, Found], parts: int = 6) -> Iterator[str]:
    """Means over concepts of one part of the training after another; single steps are noise."""
    rows = []
    for what, title in (
        ("losses", "upper and lower level: denoising loss"),
        ("penalties", "added to it: the penalty"),
        ("residuals", "lower level: norm of dL/dA"),
        ("gradients", "upper level: norm of the Riemannian gradient of B"),
    ):
        curves = [curve for seed in found[DEFAULT].seeds for curve in seed.get("curves", {}).get(what, [])]
        if not curves:
            continue
        size = len(curves[0]) // parts
        rows.append([title, *[show([statistics.fmean(c[i * size : (i + 1) * size]) for c in curves], 4) for i in range(parts)]])
    yield from table(["", *[f"part {i + 1} of {parts}" for i in range(parts)]], rows)


def weaker(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    cells = []
    for row in rows:
        what = f"without {row['without']}" if row["without"] else f"strength {row['strength']:g}"
        cells.append([what, f"{row['base']:.3f}", show(row["cosine"])])
    yield from table(["library", "base emoji kept", "identity"], cells)


def largest(paths: Iterable[Path]) -> tuple[int, dict[str, Any]]:
    """Of files named after the number of concepts they are about, the one with the most, and that number; 0 without any."""
    numbered = {int(path.stem.rpartition("-")[2]): path for path in paths}
    count = max(numbered, default=0)
    return count, json.loads(numbered[count].read_text()) if count else {}


def page(out: Path, pictures: Path) -> str:
    """The page's text; writes its pictures into the folder."""
    first, second = LOADERS
    parts = sections(out, first, pictures)
    parts["second"] = "Not run yet."
    if DEFAULT in read(out, second):
        parts["second"] = fill("template_second_model.md", {**sections(out, second, pictures), "other": parts["base"]})
    return fill("template.md", parts)


def sections(out: Path, architecture: str, pictures: Path) -> dict[str, str]:
    """What the page's templates ask for by name, of one base model. What depends on how many concepts a run taught
    compares runs of the number that all methods were run to."""
    from .figures import draw_figures

    found = read(out, architecture)
    sizes = sizes_of(found)
    size = max((n for n in sizes if n <= 32), default=sizes[0])
    common = read(out, architecture, size)
    measured = [seed for f in found.values() for seed in f.seeds]
    _, steps = largest((out / architecture).glob("cost-*.json"))
    parts_of, lost = largest(path for folder in found[DEFAULT].folders for path in folder.glob("parts-*.json"))
    drawn = draw_figures(found, common, pictures, architecture)
    return {
        "machine": "; ".join(sorted({seed["machine"] for seed in measured})),
        "commit": ", ".join(sorted({seed["commit"] for seed in measured})),
        "base": f"{measured[0]['prior of the base']:.1%}",
        "steps": str(STEPS),
        "batch": str(BATCH_SIZE),
        "rank": str(RANK),
        "capacity": str(CAPACITY),
        "kept": f"{KEPT:.0%}",
        "seeds": str(max(len(f.seeds) for f in found.values())),
        "tuning_concepts": str(TUNING),
        "common": str(size),
        "pictures": "\n\n".join(drawn),
        "bars": "\n".join(bars(found, common, size, steps)),
        "identity": "\n".join(identity(found, size)),
        "ahead": "\n".join(ahead(common, [n for n in sizes if n in (16, size)])),
        "naming": "\n".join(naming(common, size)),
        "parts_of": str(parts_of or "not measured yet"),
        "parts": "\n".join(weaker(lost.get("rows", []))),
        "tuning": "\n".join(tuning(found, size)),
        "times": "\n".join(by_time(common, size)),
        "together": "\n".join(together(common)),
        "cost": "\n".join(cost(found)),
        "bound": "\n".join(bound(common, size)),
        "convergence": "\n".join(convergence(found)),
        "runs": "\n".join(
            table(
                ["method", "concepts taught with each seed"],
                [
                    [METHODS[key].title, ", ".join(f"seed {n}: {c}" for n, c in zip(f.numbers, f.counts, strict=True))]
                    for key, f in found.items()
                ],
            )
        ),
    }


def fill(template: str, parts: Mapping[str, str]) -> str:
    text = (Path(__file__).parent / template).read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="out", type=Path, default=ROOT / "build" / "emoji101")
    args = parser.parse_args()
    if DEFAULT not in read(args.out, next(iter(LOADERS))):
        parser.error(f"there is no finished run of {DEFAULT} under {args.out}; run: python -m benchmarks.emoji101")
    path = ROOT / "docs" / "results.md"
    path.write_text(page(args.out, ROOT / "docs" / "pictures"), encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
