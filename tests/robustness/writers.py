"""Eight processes teach five concepts each into one library, all at once, and one more is killed again and again meanwhile."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import torch

from seqlora.library.lock import LibraryLock
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.method.metrics import basis_error
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.robustness.common import Child, check, in_child, workplace
from tests.support.small import QUICK, SmallModel, contents, small_request

COUNT = 8  # processes
EACH = 5  # concepts
WIDTH = 48  # of the model: 40 orthogonal concepts of rank 1 fit
DEADLOCK = 1800  # seconds


def writer(path: Path, number: int, each: int, capacity: int, steps: int = QUICK.steps) -> None:
    signal.alarm(DEADLOCK)
    library = Library.create(path, 1, capacity, "attention and mlp")  # whoever is first
    model = SmallModel(WIDTH)
    for concept in range(each):
        name = f"concept {number}-{concept}"
        run_to_end(train_steps(library, small_request(name, seed=100 * number + concept), QUICK.with_(steps=steps), model))


def look(path: Path, count: int) -> dict[str, Any]:
    library = Library.open(path)
    check(len(library.names) == len(set(library.names)) == count, f"{len(library.names)} of {count} concepts")
    check([record.id for record in library.concepts] == list(range(1, count + 1)), "the numbers have gaps")
    check(not any(record.full_layers for record in library.concepts), "a layer was full")
    left = [file for file in contents(path) if file.endswith(".tmp")]
    for file in left:  # of the process that was killed while it wrote
        (path / file).unlink()
    check(verify(path) == [], f"not clean: {verify(path)}")
    turn = LibraryLock(path)
    check(turn.acquire(timeout=1), "somebody still holds the lock")
    turn.release()
    with torch.no_grad():
        across, within = basis_error([library.load(name) for name in library.names])
    return {"across": across, "within": within}


def run(count: int = COUNT, seed: int = 0) -> str:
    rng, kills = random.Random(seed), 0
    with workplace() as folder:
        path = folder / "shared"
        children = [Child(lambda say, n=n: writer(path, n, EACH, count * EACH)) for n in range(count)]
        while not path.exists():
            time.sleep(0.01)
        for _ in range(count):  # a process that dies while it waits or teaches
            victim = Child(lambda say: writer(path, count, EACH, count * EACH, steps=10**6))
            time.sleep(rng.uniform(0.05, 0.3))
            victim.kill()
            victim.end()
            kills += 1
        check(all(child.end()[1] for child in children), "a process failed, see above")
        figures = in_child(lambda: look(path, count * EACH))
    return (
        f"{count} processes taught {count * EACH} concepts, all pairwise orthogonal (largest entry of B_i'B_j "
        f"{figures['across']:.1e}, of B_i'B_i - I {figures['within']:.1e}); {kills} kills of one more process left no lock"
    )
