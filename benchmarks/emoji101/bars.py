"""What the project set out to reach, met or not."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from .experiment import SUBSETS
from .found import Found, lead, mean_and_error, show
from .methods import METHODS, PUBLISHED
from .tables import ALONE, DEFAULT, interval, places, table

WANTED = {32: 1.0, 101: 0.95}  # composed identity as a share of plain LoRA's alone
BASE = 0.95  # of the base model's own emoji
STEP = {"first": 1.10, "late": 1.15}


class Bars:
    """Rows of what was asked for, what was seen, and whether that is enough."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def add(self, what: str, seen: str = "", met: bool | None = None, short: str = "") -> None:
        """`short`: what a bar that is met so far still lacks."""
        verdict = {True: f"met{short}", False: "**not met**", None: "not measured yet"}[met]
        self.rows.append([what, seen, verdict])


def bars(found: Mapping[str, Found], common: Mapping[str, Found], size: int, steps: Mapping[str, float]) -> Iterator[str]:
    """`common`: the runs of `size` concepts; `steps`: cost.py's ratios."""
    rows = Bars()
    _identity(rows, found)
    _rivals(rows, found)
    _crosstalk(rows, common)
    for count in (4, 16):
        kept = common[DEFAULT].kept_in(count) if DEFAULT in common else None
        what = f"kept in {SUBSETS} random subsets of {count}, of a library of {size} >= 97 %"
        rows.add(what) if kept is None else rows.add(what, f"{kept:.1%}", kept >= 0.97)
    for key, what in (
        ("first", "a step at most {:.2f} x independent LoRA's, steps taken in turn"),
        ("late", f"a step after {steps.get('concepts', 0):.0f} concepts at most {{:.2f}} x the first concept's"),
    ):
        seen = (f"{steps[key]:.3f} x", steps[key] <= STEP[key]) if key in steps else ()
        rows.add(what.format(STEP[key]), *seen)
    yield from table(["bar", "seen", ""], rows.rows)


def _identity(rows: Bars, found: Mapping[str, Found]) -> None:
    """In absolute terms: a method that learns little keeps all of it."""
    for size, wanted in WANTED.items():
        what = f"composed identity at {size} concepts >= {wanted:.0%} of plain LoRA's alone, the same pictures and passes"
        base = f"base emoji kept at {size} concepts >= {BASE:.0%}"
        tenths = f"the last tenth taught of {size} >= 95 % of the first"
        ours = found[DEFAULT].shared(found[ALONE], size) if {DEFAULT, ALONE} <= found.keys() else None
        if ours is None or not ours.seeds:
            rows.add(what)
        else:
            composed, alone = ours.at(size, "cosine"), found[ALONE].shared(ours, size).alone(size, "cosine")
            share = statistics.fmean(composed) / statistics.fmean(alone)
            seen = f"{share:.1%}: {show(composed)} against {show(alone)}, paired {interval(lead(composed, alone))}"
            rows.add(what, f"{seen} (seeds: {len(ours.seeds)})", share >= wanted)
        if not found[DEFAULT].at(size, "cosine"):
            rows.add(tenths)
            rows.add(base)
            continue
        where = places(size)
        last, first = (
            statistics.fmean(found[DEFAULT].at(size, "cosine", where[f"{name} tenth"])) for name in ("last", "first")
        )
        rows.add(tenths, f"{last / first:.1%}: {last:.3f} against {first:.3f}", last >= 0.95 * first)
        prior = found[DEFAULT].prior(size)
        rows.add(base, show(prior), statistics.fmean(prior) >= BASE)


def _rivals(rows: Bars, found: Mapping[str, Found]) -> None:
    """By paired differences over the same concepts and seeds; the rival that comes closest is told."""
    ours = found[DEFAULT]
    for size in (n for n in (16, 32, 64, 101) if ours.at(n, "cosine")):
        for published, who in ((True, "as published"), (False, "given our penalty")):
            wanted = [key for key in METHODS if _is_rival(key) and (METHODS[key].group == PUBLISHED) == published]
            leads = {}
            for key in wanted:
                both = ours.shared(found[key], size) if key in found else None
                if both is not None and both.seeds:
                    gain = lead(both.at(size, "cosine"), found[key].shared(ours, size).at(size, "cosine"))
                    mean, error = mean_and_error(gain)
                    leads[key] = (mean - error, interval(gain), len(both.seeds))
            what = f"ahead of every rival {who} at {size} concepts: paired interval above 0"
            if not leads:
                rows.add(what)
                continue
            closest = min(leads, key=lambda key: leads[key][0])
            least, said, seeds = leads[closest]
            missing = len(wanted) - len(leads)
            short = f", {missing} of {len(wanted)} not run" if missing else ""
            rows.add(what, f"{said} to {found[closest].title} (seeds: {seeds})", least > 0, short)


def _crosstalk(rows: Bars, common: Mapping[str, Found]) -> None:
    seen: dict[str, Any] = {key: statistics.fmean(f.each("crosstalk")) for key, f in common.items() if f.each("crosstalk")}
    for key, most, what in (
        ("lora", 0.2, "crosstalk at most 1/5 of independent LoRA's"),
        ("oa", 1.0, "crosstalk below Orthogonal Adaptation's"),
    ):
        if {key, DEFAULT} <= seen.keys():
            rows.add(what, f"{seen[DEFAULT]:.4f} against {seen[key]:.4f}", seen[DEFAULT] < most * seen[key])
        else:
            rows.add(what)


def _is_rival(key: str) -> bool:
    """Not ours, not a variant of ours, not taught all at once."""
    return METHODS[key].core != "seqlora" and not METHODS[key].together
