"""kill -9 at random instants of training, checkpointing, committing, removing, renaming and teaching anew."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from seqlora.library.repair import repair
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.robustness.common import NAMES, Child, check, in_child, taught_library, workplace
from tests.support.small import QUICK, SmallModel, small_request

COUNT = 300
EVERY_STEP = 1e-9  # minutes between checkpoints: then the interval is one step
Say = Callable[[Any], None]


def train(path: Path, say: Say, name: str = "bird", replace: bool = False) -> None:
    """Says every step, and when the last one is over: what follows is the commit."""

    def tell(progress: Any) -> None:
        if progress.phase == "training" and not progress.note:
            say(progress.step)

    run_to_end(train_steps(Library.open(path), small_request(name, 7), QUICK, SmallModel(), EVERY_STEP, replace), tell)


def teach_anew(path: Path, say: Say) -> None:
    train(path, say, "dog", replace=True)


def remove(path: Path, say: Say) -> None:
    with Library.open(path).writing() as writer:
        writer.remove("dog")


def rename(path: Path, say: Say) -> None:
    with Library.open(path).writing() as writer:
        writer.rename("dog", "hound")


# What runs, after which word of the child the clock starts (0: at once), and what the library may hold afterwards.
ACTIONS: dict[str, tuple[Callable[[Path, Say], None], int, tuple[set[str], ...]]] = {
    "training and checkpointing": (train, 0, ({"cat", "dog"}, {"cat", "dog", "bird"})),
    "removing": (remove, 0, ({"cat", "dog"}, {"cat"})),
    "committing what was taught anew": (teach_anew, QUICK.steps, ({"cat", "dog"},)),
    "committing": (train, QUICK.steps, ({"cat", "dog"}, {"cat", "dog", "bird"})),
    "renaming": (rename, 0, ({"cat", "dog"}, {"cat", "hound"})),
    "teaching anew": (teach_anew, 0, ({"cat", "dog"},)),
}


def duration(template: Path, folder: Path, action: Callable[[Path, Say], None], start: int) -> float:
    """Seconds from the start of the clock to the end."""
    shutil.copytree(template, folder)
    child, began = Child(lambda say: action(folder, say)), time.monotonic()
    while start and child.hear() != start:
        began = time.monotonic()
    check(child.end()[1], "the action fails without a kill")
    shutil.rmtree(folder)
    return time.monotonic() - began


def one_kill(template: Path, path: Path, name: str, wait: float) -> dict[str, Any]:
    action, start, allowed = ACTIONS[name]
    shutil.copytree(template, path)
    child = Child(lambda say: (action(path, say), say("done")))
    steps = [0]
    while start and steps[-1] != start:
        steps.append(child.hear())
    time.sleep(wait)
    child.kill()
    said, _ = child.end()
    steps += [step for step in said if step != "done"]
    figures = in_child(lambda: after(template, path, name, allowed, "done" in said))
    lost = max(steps) - figures.pop("resumed", max(steps))
    check(lost <= 1, f"{lost} steps were lost")
    return figures | {"lost": lost, "done": "done" in said}


def after(template: Path, path: Path, name: str, allowed: tuple[set[str], ...], done: bool) -> dict[str, Any]:
    """What is left, looked at, repaired if need be, and gone on with."""
    findings = verify(path)
    if findings:
        repair(path)
    check(verify(path) == [], f"{name}: {verify(path)} after {findings}")
    library, before = Library.open(path), Library.open(template)
    held = set(library.names)
    check(held in allowed, f"{name}: holds {held}")
    check(not done or held == allowed[-1], f"{name}: was done, but holds {held}")
    for kept in set(NAMES) & held - ({"dog"} if "anew" in name else set()):
        pairs = zip(library.load(kept).values(), before.load(kept).values(), strict=True)
        check(all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)), f"{kept} has changed")
    figures: dict[str, Any] = {"repaired": bool(findings), "switched": held == allowed[-1]}
    if ACTIONS[name][0] in (train, teach_anew):
        lesson, anew = ("dog", True) if "anew" in name else ("bird", False)
        taught = run_to_end(train_steps(library, small_request(lesson, 7), QUICK, SmallModel(), replace=anew))
        check(verify(path) == [] and set(taught.library.names) == allowed[-1], f"{name}: could not be gone on with")
        if not taught.reused:
            figures["resumed"] = taught.report.resumed_at or 0
    return figures


def run(count: int = COUNT, seed: int = 0) -> str:
    rng, totals = random.Random(seed), Counter()
    lost, names = 0, list(ACTIONS)[:count]
    with workplace() as folder:
        template = folder / "template"
        in_child(lambda: taught_library(template))
        seconds = {name: duration(template, folder / "pets", *ACTIONS[name][:2]) for name in names}
        for number in range(count):
            name = names[number % len(names)]
            figures = one_kill(template, folder / "pets", name, rng.uniform(0, 1.05) * seconds[name])
            shutil.rmtree(folder / "pets")
            lost = max(lost, figures["lost"])
            totals.update(kind for kind in ("repaired", "done") if figures[kind])
            totals[name] += 1
    each = ", ".join(f"{totals[name]} {name}" for name in names)
    return (
        f"{count} kills ({each}): {totals['done']} came after the end, {count - totals['repaired']} libraries were clean at "
        f"once, {totals['repaired']} after one repair, none had lost a concept; at most {lost} steps of training were lost, "
        "with a checkpoint at every step"
    )
