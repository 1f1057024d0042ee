"""The tables of the results page, from filed runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .experiment import PARTS, SIZES
from .found import OUTDATED, PLUS_MINUS, Found, lead, learned, mean_and_error, show
from .measures import TIMES
from .methods import METHODS

DEFAULT, ALONE = "seqlora", "lora"  # ours; what the pictures allow: plain LoRA, each concept by itself


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
            rows.append([method.title, "", *cells, *["" for _ in shares]])
            continue
        whole = [f"{kept(method, n):.1%}" if learned(method.alone(n, "cosine")) else "" for n in shares]
        rows.append([method.title, show(method.alone(size, "cosine")), *cells, *whole])
    yield from table(head, rows)


def places(size: int) -> dict[str, slice]:
    """The first, middle and last tenth of an order of `size` concepts."""
    tenth = max(1, round(size / 10))
    middle = (size - tenth) // 2
    spans = {"first tenth": (0, tenth), "middle tenth": (middle, middle + tenth), "last tenth": (size - tenth, size)}
    return {"all": slice(None), **{name: slice(*span) for name, span in spans.items()}}


def against_alone(found: Mapping[str, Found], key: str = DEFAULT) -> Iterator[str]:
    """A method's composed identity beside what the pictures allow, by the place in the order, on the seeds that both have."""
    rows = []
    for size in (n for n in SIZES if n >= 16 and key in found and ALONE in found):
        ours, theirs = found[key].shared(found[ALONE], size), found[ALONE].shared(found[key], size)
        for name, place in places(size).items() if ours.seeds else ():
            composed, alone = ours.at(size, "cosine", place), theirs.alone(size, "cosine", place)
            rows.append(
                [
                    f"{size}, {name} ({len(composed)})",
                    show(composed),
                    show(alone),
                    f"{statistics.fmean(composed) / statistics.fmean(alone):.1%}",
                    interval(lead(composed, alone)),
                    show(ours.prior(size)) if name == "all" else "",
                    show(ours.change(size, place), 2),
                ]
            )
    head = ["concepts summed", "composed", "plain LoRA alone", "share", "difference", "base emoji kept", "size of change"]
    yield from table(head, rows)


def interval(differences: Sequence[float]) -> str:
    """Mean of paired differences with its 95 % interval, also of a few."""
    mean, error = mean_and_error(differences)
    return f"{mean:+.3f} {PLUS_MINUS} {error:.3f}" if error == error else f"{mean:+.3f}"


def ahead(found: Mapping[str, Found], sizes: Sequence[int]) -> Iterator[str]:
    """How far the default is ahead of each method, emoji by emoji."""
    rows = []
    for key, method in found.items():
        pairs = [(found[DEFAULT].shared(method, n), method.shared(found[DEFAULT], n), n) for n in sizes]
        if key == DEFAULT or METHODS[key].together or not any(theirs.seeds for _, theirs, _ in pairs):
            continue
        gains = [lead(ours.at(n, "cosine"), theirs.at(n, "cosine")) for ours, theirs, n in pairs]
        cells = [interval(gain) if gain else "" for gain in gains]
        rows.append([method.title, f"{len(pairs[-1][1].seeds)}", *cells, *[show(theirs.prior(n)) for _, theirs, n in pairs]])
    head = ["method", "seeds", *[f"ahead of it at {n}" for n in sizes], *[f"its base emoji kept at {n}" for n in sizes]]
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
                method.title,
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


def tuning(found: Mapping[str, Found], size: int, filed: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """`filed`: of each method what was tried, and what came of it, as it is filed."""
    rows = []
    for key, method in found.items():
        record = filed.get(key, {})
        like, tried = METHODS[key].tuned_like, record.get("tried", [])
        ends = (
            {}
            if like or not tried
            else {_setting(tried[0]["tuned"]): " (first tried)", _setting(tried[-1]["tuned"]): " (last tried)"}
        )
        figures = [f"{_setting(one['tuned'])}: {one['identity']:.3f}, {one['base']:.2f}" for one in tried if "identity" in one]
        rows.append(
            [
                method.title,
                _setting(method.tuned) + ends.get(_setting(method.tuned), ""),
                f"as {METHODS[like].title}" if like else "; ".join(figures) or record.get("note", ""),
                "" if METHODS[key].together else show(method.alone(size, "cosine")),
            ]
        )
    head = ["method", "learning rate / penalty", "tried: identity, base emoji kept", f"identity alone, of {size}"]
    yield from table(head, rows)


def _setting(setting: Mapping[str, float]) -> str:
    return " / ".join(f"{value:g}" for value in setting.values())


def by_time(found: Mapping[str, Found], size: int) -> Iterator[str]:
    rows = []
    for method in found.values():
        if _forgets(method, size):
            lost = method.forgetting(size)
            rows.append([method.title, *[show([row[i] for row in lost], 4) for i in range(len(TIMES))]])
    yield from table(["method", *[f"t = {t}" for t in TIMES]], rows)


def together(found: Mapping[str, Found]) -> Iterator[str]:
    rows = []
    for method in found.values():
        subsets = ["" if share is None else f"{share:.1%}" for share in (method.kept_in(4), method.kept_in(16))]
        pairs = method.each("pairs")
        if not pairs:
            continue
        shares = [show([pair[what] for pair in pairs], 2) for what in ("both", "at least one", "swapped")]
        residual = [show([row[i] for seed in method.each("residual") for row in seed], 4) for i in (0, 1)]
        captured = show([value for seed in method.each("captured") for value in seed])
        rows.append([method.title, *subsets, *shares, captured, *residual])
    head = ["method", "kept in 4", "kept in 16", "both", "one or both", "swapped"]
    yield from table([*head, "own energy captured", "residual energy, basis", "residual energy, disturbance"], rows)


def cost(found: Mapping[str, Found]) -> Iterator[str]:
    rows = []
    for method in found.values():
        full = [sum(1 for n in seed["full_layers"] if n) for seed in method.seeds]
        size = method.each("bytes")
        rows.append(
            [
                method.title,
                f"{1000 * statistics.median(value for seed in method.seeds for value in seed['step_seconds']):.0f}",
                f"{size[0] / 1e6:.2f}" if size else "",
                f"{max(full)}",
            ]
        )
    yield from table(["method", "ms a step", "MB a concept (fp32)", "concepts with full layers"], rows)


def bound(found: Mapping[str, Found]) -> Iterator[str]:
    rows = []
    for method in found.values():
        runs = method.each("bound")
        for source in runs[0] if runs else ():
            parts = [run[source] for run in runs]
            whole = sum(part["checked"] for part in parts)
            mean = {n: sum(p["checked"] * p[n] for p in parts) / whole for n in ("within", "layers within", "of bound")}
            shares = [f"{mean['within']:.2%}", f"{mean['layers within']:.1%}", f"{mean['of bound']:.3f}"]
            rows.append([method.title, source, f"{whole}", *shares, f"{max(part['constant'] for part in parts):.2f}"])
    head = ["method", "moments", "layers x concepts", "rows within", "layers where >= 95 % are"]
    yield from table([*head, "measured / bound", "largest K"], rows)


def convergence(found: Mapping[str, Found]) -> Iterator[str]:
    """Means over concepts of one part of the training after another."""
    rows = []
    for what, title in (
        ("losses", "upper and lower level: denoising loss"),
        ("penalties", "added to it: the penalty"),
        ("residuals", "lower level: norm of dL/dA"),
        ("gradients", "upper level: norm of the Riemannian gradient of B"),
    ):
        curves = [curve for seed in found[DEFAULT].seeds for curve in seed.get("curves", {}).get(what, [])]
        if curves:
            rows.append([title, *[show([curve[i] for curve in curves], 4) for i in range(PARTS)]])
    yield from table(["", *[f"part {i + 1} of {PARTS}" for i in range(PARTS)]], rows)


def weaker(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    cells = []
    for row in rows:
        what = f"without {row['without']}" if row["without"] else f"strength {row['strength']:g}"
        cells.append([what, f"{row['base']:.3f}", show(row["cosine"])])
    yield from table(["library", "base emoji kept", "identity"], cells)


def runs(architecture_runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Every filed run, and in what the code of today would teach or measure it otherwise."""
    rows = []
    for run in sorted(architecture_runs, key=lambda run: (list(METHODS).index(run["method"]), run["seed"], run["concepts"])):
        what = METHODS[run["method"]].title + (f" {OUTDATED}" if run["outdated"] else "")
        rows.append([what, f"{run['seed']}", f"{run['concepts']}", run["hash"], run["commit"], run["outdated"]])
    yield from table(["method", "seed", "concepts", "settings", "commit", "outdated in"], rows)
