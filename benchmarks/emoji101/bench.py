"""Emoji-101: concepts taught one after another to a small model, summed, and measured; ours beside the baselines.

    python -m benchmarks.emoji101 --concepts 32 --seeds 3 --methods all

Everything is kept under --out as soon as it is done: a benchmark that was stopped goes on where it was.
`python -m benchmarks.emoji101.results` writes docs/results.md from what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from pathlib import Path

from seqlora.io.atomic import write_bytes

from .ablation import MOST, parts
from .cost import step_cost
from .experiment import TUNING, Bench, best, commit, machine
from .methods import BOUNDED, METHODS
from .model import LOADERS

OUT = Path("build/emoji101")
_bench: Bench


def _start(architecture: str, out: Path) -> None:
    import torch

    global _bench
    torch.set_num_threads(1)  # two processes of one thread each are much faster than one of two
    _bench = Bench(architecture, out)


def _tune(job: tuple[str, int]) -> tuple[str, int, dict]:
    key, index = job
    run = _bench.run(key, METHODS[key].grid[index], 0, TUNING, test=False)
    return key, index, _bench.result(run, TUNING, full=False)


def _run(job: tuple[str, dict, int, int]) -> str:
    key, tuned, seed, count = job
    run = _bench.run(key, tuned, seed, count)
    _bench.result(run, count)
    if key in BOUNDED:
        _bench.bound(run, count)
    _bench.note(key, run, tuned, count)
    return f"{key}, seed {seed}"


def _cost(job: tuple[dict, int]) -> None:
    tuned, count = job
    run = _bench.run("seqlora", tuned["seqlora"], 0, count)
    _once(_bench.out / _bench.architecture / f"cost-{count}.json", lambda: step_cost(_bench, run, tuned))


def _parts(job: tuple[dict, int]) -> None:
    tuned, count = job
    run, first = _bench.run("seqlora", tuned["seqlora"], 0, count), min(count, MOST)
    _once(run.folder / f"parts-{first}.json", lambda: {"rows": parts(_bench, run, first)})


def _once(path: Path, look: Callable[[], dict]) -> None:
    if not path.exists():
        write_bytes(path, json.dumps({"machine": machine(), "commit": commit(), **look()}).encode())


def show(what: str, jobs: Iterable, total: int) -> list:
    """Shows how many jobs are done and the time that the rest will take."""
    began, results = time.monotonic(), []
    for done, result in enumerate(jobs, 1):
        results.append(result)
        left = (time.monotonic() - began) / done * (total - done)
        print(
            f"\r{what} {done}/{total}, {left / 60:.0f} min left   ",
            end="" if done < total else "\n",
            file=sys.stderr,
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="METHOD", help=f"all, or of: {', '.join(METHODS)}")
    parser.add_argument("--architecture", default="unet", choices=list(LOADERS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    keys = list(METHODS) if args.methods == ["all"] else args.methods
    unknown = [key for key in keys if key not in METHODS]
    if unknown:
        parser.error(f"there is no method {unknown[0]}; there are: {', '.join(METHODS)}")
    with get_context("spawn").Pool(args.workers, _start, (args.architecture, args.out)) as pool:
        parents = dict.fromkeys(METHODS[key].tuned_like or key for key in keys)
        grid = [(key, index) for key in parents for index in range(len(METHODS[key].grid))]
        tried: dict[str, list] = {}
        for key, index, result in show("tuning", pool.imap_unordered(_tune, grid), len(grid)):
            tried.setdefault(key, []).append((METHODS[key].grid[index], result))
        tuned = {
            key: best(tried[METHODS[key].tuned_like or key], METHODS[key].keeps) for key in dict.fromkeys([*parents, *keys])
        }
        jobs = [(key, tuned[key], seed, args.concepts) for seed in range(args.seeds) for key in keys]
        show("runs", pool.imap_unordered(_run, jobs), len(jobs))
        if {"seqlora", "lora"} <= set(tuned):
            pool.apply(_cost, [(tuned, args.concepts)])
        if "seqlora" in tuned:
            pool.apply(_parts, [(tuned, args.concepts)])
