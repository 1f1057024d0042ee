"""docs/results.md and its pictures, from what the benchmark left on disk. Nothing here is typed by hand.

python -m benchmarks.emoji101.results
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .measures import TIMES
from .methods import BATCH_SIZE, CAPACITY, METHODS, PUBLISHED, RANK, STEPS
from .runs import SIZES

ROOT = Path(__file__).parents[2]
DEFAULT = "seqlora"
PLUS_MINUS = "\u00b1"


@dataclass
class Found:
    """All seeds of one method at one planned number of concepts."""

    key: str
    tuned: Mapping[str, float] = field(default_factory=dict)
    seeds: list[dict[str, Any]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    strips: list[Path] = field(default_factory=list)  # pictures of the first concepts, a seed each

    def at(self, size: int, what: str) -> list[float]:
        """A figure of every concept of every seed when `size` concepts are summed."""
        return [value for seed in self.seeds for value in seed["sizes"].get(str(size), {}).get(what, [])]

    def alone(self, size: int, what: str) -> list[float]:
        """The same concepts, each with only its own adapter."""
        return [value for seed in self.seeds if str(size) in seed["sizes"] for value in seed["alone"][what][:size]]

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
        return sum(beside for beside, _ in pairs) / sum(alone for _, alone in pairs) if pairs else None

    def each(self, what: str) -> list[Any]:
        return [seed[what] for seed in self.seeds if what in seed]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval."""
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))


def show(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return ""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" + (f" {PLUS_MINUS} {error:.{digits}f}" if error == error else "")


def read(out: Path, architecture: str, taught: int | None = None) -> dict[str, Found]:
    """All seeds of each method: the runs with that many concepts, or else with the most that there are."""
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
            method.folders.append(folder)
            method.strips += [p for p in [folder / f"strip-{count}.png"] if p.exists()]
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def sizes_of(found: Mapping[str, Found]) -> list[int]:
    return [n for n in SIZES if any(f.at(n, "cosine") for f in found.values())]


def identity(found: Mapping[str, Found]) -> Iterator[str]:
    sizes = sizes_of(found)
    head = ["method", "alone", *[f"{n} summed" for n in sizes], f"kept at {sizes[-1]} or most"]
    group = ""
    rows = []
    for key, method in found.items():
        if METHODS[key].group != group:
            group = METHODS[key].group
            rows.append([f"**{group}**", *[""] * (len(head) - 1)])
        most = max(n for n in sizes if method.at(n, "cosine"))
        kept = statistics.fmean(method.at(most, "cosine")) / statistics.fmean(method.alone(most, "cosine"))
        cells = [show(method.at(n, "cosine")) for n in sizes]
        rows.append([METHODS[key].title, show(method.alone(most, "cosine")), *cells, f"{kept:.1%}"])
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
        lost = [statistics.fmean(row) for row in method.forgetting(size)] if method.at(size, "loss") else []
        crosstalk = [seed["crosstalk"] for seed in method.seeds if "crosstalk" in seed]
        rows.append(
            [
                METHODS[key].title,
                show(method.at(size, "nearest")),
                show(method.at(size, "named")),
                show(method.alone(size, "named")),
                show(method.prior(size)),
                show(crosstalk, 4),
                show(method.each("crosstalk felt"), 4),
                show(lost, 4),
                show([value for seed in method.each("change") for value in seed], 2),
            ]
        )
    yield from table(head, rows)


def tuning(found: Mapping[str, Found]) -> Iterator[str]:
    rows = []
    for key, method in found.items():
        like = METHODS[key].tuned_like
        rows.append(
            [
                METHODS[key].title,
                f"{method.tuned['learning_rate']:g}",
                f"{method.tuned['interference']:g}" if "interference" in method.tuned else "",
                f"as {METHODS[like].title}" if like else ", ".join(_setting(s) for s in METHODS[key].grid),
                show([value for seed in method.seeds for value in seed["alone"]["cosine"]]),
            ]
        )
    yield from table(["method", "learning rate", "penalty", "tried", "identity alone"], rows)


def _setting(setting: Mapping[str, float]) -> str:
    return " / ".join(f"{value:g}" for value in setting.values())


def by_time(found: Mapping[str, Found], size: int) -> Iterator[str]:
    rows = []
    for key, method in found.items():
        if method.at(size, "loss"):
            lost = method.forgetting(size)
            rows.append([METHODS[key].title, *[show([row[i] for row in lost], 4) for i in range(len(TIMES))]])
    yield from table(["method", *[f"t = {t}" for t in TIMES]], rows)


def together(found: Mapping[str, Found]) -> Iterator[str]:
    rows = []
    for key, method in found.items():
        subsets = ["" if kept is None else f"{kept:.1%}" for kept in (method.kept_in(4), method.kept_in(16))]
        pairs = method.each("pairs")
        if not pairs:
            continue
        shares = [show([pair[what] for pair in pairs], 2) for what in ("both", "at least one", "swapped")]
        residual = [show([row[i] for seed in method.each("residual") for row in seed], 4) for i in (0, 1)]
        captured = show([value for seed in method.each("captured") for value in seed])
        rows.append([METHODS[key].title, *subsets, *shares, captured, *residual])
    head = ["method", "kept in 4", "kept in 16", "both", "one or both", "swapped"]
    yield from table([*head, "own energy captured", "residual energy, basis", "residual energy, disturbance"], rows)


def step(method: Found) -> float:
    """Median seconds of a step, in a library's first concepts: methods were run to different numbers."""
    return statistics.median(value for seed in method.seeds for value in seed["step_seconds"][:32])


def late(method: Found) -> tuple[float, int]:
    """What the last eight concepts' steps cost, relative to the first eight's, in the longest run; and its length."""
    longest = max((seed["step_seconds"] for seed in method.seeds), key=len)
    return statistics.median(longest[-8:]) / statistics.median(longest[:8]), len(longest)


def cost(found: Mapping[str, Found]) -> Iterator[str]:
    """Processor time of runs at different times: benchmarks/step_cost.py compares side by side."""
    rows = []
    for key, method in found.items():
        full = [sum(1 for n in seed["full_layers"] if n) for seed in method.seeds]
        size = method.each("bytes")
        rows.append(
            [
                METHODS[key].title,
                f"{step(method) * 1000:.0f}",
                f"{late(method)[0]:.2f}",
                f"{size[0] / 1e6:.2f}" if size else "",
                f"{max(full)}",
            ]
        )
    yield from table(["method", "ms a step", "last 8 over first 8", "MB a concept (fp32)", "concepts with full layers"], rows)


def bars(found: Mapping[str, Found], common: Mapping[str, Found]) -> Iterator[str]:
    """What the project set out to reach, met or not. `common`: the runs of as many concepts as all methods taught."""
    ours = found[DEFAULT]
    rows: list[list[str]] = []

    def bar(what: str, value: str, met: bool | None) -> None:
        rows.append([what, value, {True: "met", False: "**not met**", None: "not measured yet"}[met]])

    for key, size, wanted in ((DEFAULT, 32, 0.98), (DEFAULT, 101, 0.95), ("planned-101", 101, 0.95)):
        what = f"identity kept at {size} concepts >= {wanted:.0%}, {METHODS[key].title}"
        if key in found and found[key].at(size, "cosine"):
            kept = statistics.fmean(found[key].at(size, "cosine")) / statistics.fmean(found[key].alone(size, "cosine"))
            bar(what, f"{kept:.1%}", kept >= wanted)
        else:
            bar(what, "", None)
    for size in (n for n in (16, 32, 64, 101) if ours.at(n, "cosine")):
        mean, error = mean_and_error(ours.at(size, "cosine"))
        for published in (True, False):
            rivals = {
                key: mean_and_error(f.at(size, "cosine"))
                for key, f in found.items()
                if f.at(size, "cosine") and (METHODS[key].group == PUBLISHED) == published and _is_rival(key)
            }
            if not rivals:
                continue
            best = max(rivals, key=lambda key: rivals[key][0])
            theirs, their_error = rivals[best]
            who = "as published" if published else "given our penalty and basis"
            bar(
                f"above every baseline {who}, {size} concepts, intervals apart",
                f"{show(ours.at(size, 'cosine'))} against {show(found[best].at(size, 'cosine'))} ({METHODS[best].title})",
                mean - error > theirs + their_error,
            )
    crosstalk = {key: statistics.fmean(f.each("crosstalk")) for key, f in common.items() if f.each("crosstalk")}
    if {"lora", "oa", DEFAULT} <= set(crosstalk):
        share = crosstalk[DEFAULT] / crosstalk["lora"]
        bar("crosstalk at most 1/5 of independent LoRA's", f"{share:.2f} of it", share <= 0.2)
        below = crosstalk[DEFAULT] < crosstalk["oa"]
        bar("crosstalk below Orthogonal Adaptation's", f"{crosstalk[DEFAULT]:.4f} against {crosstalk['oa']:.4f}", below)
    for size in (4, 16):
        kept = common[DEFAULT].kept_in(size) if DEFAULT in common else None
        what = f"kept in 20 random subsets of {size} >= 97 %"
        bar(what, "", None) if kept is None else bar(what, f"{kept:.1%}", kept >= 0.97)
    values = ours.at(64, "cosine")
    if values:
        kept = statistics.fmean(values) / statistics.fmean(ours.alone(64, "cosine"))
        bar("kept with all 64 >= 97 %", f"{kept:.1%}", kept >= 0.97)
    if ours.at(32, "cosine"):
        kept = statistics.fmean(ours.prior(32))
        bar("base captions at 32 concepts >= 95 %", f"{kept:.1%}", kept >= 0.95)
    if "lora" in found:
        ratio = step(ours) / step(found["lora"])
        bar("a step at most 1.10 x independent LoRA's (processor time)", f"{ratio:.2f} x", ratio <= 1.1)
    growth = late(ours)
    bar(
        f"the last concepts' steps at most 1.15 x the first ones', {growth[1]} concepts",
        f"{growth[0]:.2f} x",
        growth[0] <= 1.15,
    )
    yield from table(["bar", "seen", ""], rows)


def _is_rival(key: str) -> bool:
    """Not ours, not a variant of ours, not an upper bound."""
    return METHODS[key].core != "seqlora" and not METHODS[key].together


def bound(found: Mapping[str, Found]) -> Iterator[str]:
    rows = []
    for key, method in found.items():
        files = [path for folder in method.folders for path in folder.glob("bound-*.json")]
        checks = [check for path in files for check in json.loads(path.read_text())]
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
    """Means over all concepts of one part of the training after another; single steps are noise."""
    rows = []
    for what, title in (
        ("losses", "upper and lower level: loss"),
        ("penalties", "of it the penalty"),
        ("residuals", "lower level: norm of dL/dA"),
        ("gradients", "upper level: norm of the Riemannian gradient of B"),
    ):
        curves = [curve for seed in found[DEFAULT].seeds for curve in seed.get("curves", {}).get(what, [])]
        if not curves:
            continue
        size = len(curves[0]) // parts
        rows.append([title, *[show([v for c in curves for v in c[i * size : (i + 1) * size]], 4) for i in range(parts)]])
    yield from table(["", *[f"part {i + 1} of {parts}" for i in range(parts)]], rows)


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{cpu}, one thread a run, torch {torch.__version__.partition('+')[0]}"


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def page(out: Path, architecture: str, pictures: Path) -> str:
    """The page's text; writes its pictures into the folder. What depends on how many concepts a run taught compares runs of
    the number that all methods were run to."""
    from .figures import draw_figures

    found = read(out, architecture)
    sizes = sizes_of(found)
    size = max((n for n in sizes if n <= 32), default=sizes[0])
    common = read(out, architecture, size)
    counted = {key: (len(f.seeds), max(n for n in sizes if f.at(n, "cosine"))) for key, f in found.items()}
    seeds = max(count for count, _ in counted.values())
    drawn = draw_figures(found, common, pictures, architecture)
    text = (Path(__file__).parent / "results.md").read_text(encoding="utf-8")
    parts = {
        "machine": machine(),
        "commit": commit(),
        "steps": str(STEPS),
        "batch": str(BATCH_SIZE),
        "rank": str(RANK),
        "capacity": str(CAPACITY),
        "seeds": str(seeds),
        "common": str(size),
        "pictures": "\n\n".join(drawn),
        "bars": "\n".join(bars(found, common)),
        "identity": "\n".join(identity(found)),
        "naming": "\n".join(naming(common, size)),
        "tuning": "\n".join(tuning(found)),
        "times": "\n".join(by_time(common, size)),
        "together": "\n".join(together(common)),
        "cost": "\n".join(cost(found)),
        "bound": "\n".join(bound(found)),
        "convergence": "\n".join(convergence(found)),
        "runs": "\n".join(
            table(
                ["method", "seeds", "concepts"],
                [[METHODS[key].title, str(count), str(most)] for key, (count, most) in counted.items()],
            )
        ),
    }
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="out", type=Path, default=ROOT / "build" / "emoji101")
    parser.add_argument("--architecture", default="unet")
    args = parser.parse_args()
    if DEFAULT not in read(args.out, args.architecture):
        parser.error(f"there is no finished run of {DEFAULT} under {args.out}; run: python -m benchmarks.emoji101")
    path = ROOT / "docs" / "results.md"
    path.write_text(page(args.out, args.architecture, ROOT / "docs" / "pictures"), encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
