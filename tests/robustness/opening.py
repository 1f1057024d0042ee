"""A library of 101 concepts is opened, and some of it composed, with every other file of concepts and moments gone."""

from __future__ import annotations

import statistics
import time

from seqlora.library.store import Library
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.robustness.common import check, in_child, workplace
from tests.support.small import QUICK, SmallModel, small_request

COUNT = 101  # concepts
TIMES = 50
MOST = 50  # milliseconds


def run(count: int, seed: int) -> str:
    with workplace() as folder:
        path = folder / "many"

        def fill() -> None:
            library = Library.create(path, 1, count, "attention and mlp")
            for number in range(count):
                settings = QUICK.with_(steps=1, seed=seed)
                library = run_to_end(
                    train_steps(library, small_request(f"concept {number}", number), settings, SmallModel())
                ).library

        in_child(fill)
        wanted = {f"concept {number}": 1.0 for number in (0, count // 2, count - 1)}
        kept = {Library.open(path).find(name).file for name in wanted}
        for file in [*path.glob("concepts/*"), *path.glob("moments/*")]:
            if str(file.relative_to(path)) not in kept:
                file.unlink()
        seconds = []
        for _ in range(TIMES):
            start = time.perf_counter()
            library = Library.open(path)
            seconds.append(time.perf_counter() - start)
        composed = library.compose(wanted)
        check(all(pair.up.shape[1] == len(wanted) for pair in composed.values()), "composing lost a concept")
        median = 1000 * statistics.median(seconds)
        check(median <= MOST, f"opening took {median:.0f} ms")
        return f"{count} concepts open in {median:.1f} ms; 3 were composed with the files of all others gone"
