"""Emoji-101: concepts taught one after another to a small model, summed, and measured; ours beside the baselines.

    python -m benchmarks.emoji101 --concepts 32 --seeds 3 --methods all

Everything is kept under --out as soon as it is done: a benchmark that was stopped goes on where it was. What a run measured is
filed in benchmarks/emoji101/results, a small file each, to be committed: `python -m benchmarks.emoji101.results` writes
docs/results.md from these. A method is tuned once; delete its tuning-<method>.json there to have it tuned anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

from . import records
from .ablation import MOST, parts
from .cost import step_cost
from .experiment import Bench, best, tuning_figures
from .methods import BOUNDED, METHODS
from .model import LOADERS

OUT = Path("build/emoji101")
_bench: Bench


def _start(architecture: str, out: Path, results: Path) -> None:
    import torch

    global _bench
    torch.set_num_threads(1)  # two processes of one thread each are much faster than one of two
    _bench = Bench(architecture, out, results)


def _tune(job: tuple[str, int]) -> tuple[str, int, dict]:
    key, index = job
    method = METHODS[key]
    run = _bench.run(key, method.grid[index], 0, method.tried_on, test=False)
    return key, index, _bench.result(run, method.tried_on, full=False)


def _run(job: tuple[str, dict, int, int]) -> str:
    key, tuned, seed, count = job
    run = _bench.run(key, tuned, seed, count)
    _bench.result(run, count)
    if key in BOUNDED:
        _bench.bound(run, count)
    _bench.file(key, run, tuned, count)
    return f"{key}, seed {seed}"


def _default(job: tuple[dict, int]) -> None:
    """What is measured of the default alone, on its first seed."""
    tuned, count = job
    run, first = _bench.run("seqlora", tuned["seqlora"], 0, count), min(count, MOST)
    for name, look in (
        (f"cost-{count}", lambda: step_cost(_bench, run, tuned)),
        (f"parts-{first}", lambda: {"rows": parts(_bench, run, first)}),
    ):
        path = _bench.results / _bench.architecture / f"{name}.json"
        settings = records.settings_hash(records.decided_by("seqlora", tuned["seqlora"]))
        if (name.startswith("parts") or "lora" in tuned) and records.read(path).get("hash") != settings:
            records.write(path, {"hash": settings, **records.origin(_bench.architecture), **look()})


def tuned_settings(pool: Pool, keys: Sequence[str], folder: Path, architecture: str) -> dict[str, dict[str, float]]:
    """Of each method: as filed, or tuned now and filed."""
    parents = dict.fromkeys(METHODS[key].tuned_like or key for key in keys)
    wanted = [*dict.fromkeys([*parents, *keys])]
    filed: dict[str, dict[str, float]] = {
        key: records.read(records.tuning_path(folder, architecture, key)).get("chosen", {}) for key in wanted
    }
    anew = [key for key in wanted if not filed[key]]
    grid = [
        (key, i) for key in dict.fromkeys(METHODS[key].tuned_like or key for key in anew) for i in range(len(METHODS[key].grid))
    ]
    tried: dict[str, list] = {}
    for key, index, result in show("tuning", pool.imap_unordered(_tune, grid), len(grid)):
        tried.setdefault(key, []).append((METHODS[key].grid[index], result))
    for key in anew:
        results = tried[METHODS[key].tuned_like or key]
        filed[key] = dict(best(results, METHODS[key].keeps))
        said = [{"tuned": dict(setting), **tuning_figures(result)} for setting, result in results]
        records.write_tuning(folder, architecture, key, said, filed[key])
    return filed


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
    parser.add_argument("--out", type=Path, default=OUT, help="where runs are kept until they are done, and after")
    parser.add_argument("--results", type=Path, default=records.FOLDER, help="where what they measured is filed")
    args = parser.parse_args()
    keys = list(METHODS) if args.methods == ["all"] else args.methods
    unknown = [key for key in keys if key not in METHODS]
    if unknown:
        parser.error(f"there is no method {unknown[0]}; there are: {', '.join(METHODS)}")
    with get_context("spawn").Pool(args.workers, _start, (args.architecture, args.out, args.results)) as pool:
        tuned = tuned_settings(pool, keys, args.results, args.architecture)
        jobs = [(key, tuned[key], seed, args.concepts) for seed in range(args.seeds) for key in keys]
        show("runs", pool.imap_unordered(_run, jobs), len(jobs))
        if "seqlora" in tuned:
            pool.apply(_default, [(tuned, args.concepts)])
