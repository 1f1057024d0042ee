"""What a run measured, as one small file that is committed: the page is made from these, anywhere and without any weights.

results/<model>/<method>-seed<n>-<concepts>.json    a run: settings, their hash, commit, machine, measures
results/<model>/<method>-seed<n>-<concepts>.webp    its first concepts as drawn, where the page shows them
results/<model>/tuning-<method>.json                what was tried on emoji that no test uses, and what was chosen
results/<model>/cost-<concepts>.json, parts-<concepts>.json    what is measured of the default alone
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from seqlora.demo import classifier, micro
from seqlora.io.atomic import write_bytes
from seqlora.library.store import request_hash
from seqlora.settings import legacy_names

from . import measures, mmdit, subjects
from .methods import BATCH_SIZE, METHODS, RANK, REVISION
from .sequence import TARGETS

FOLDER = Path(__file__).parent / "results"
ORIGIN = ("commit", "machine", "base model")  # of the measures
DIGITS = 4  # that count; of a mean over a few pictures the third says nothing any more


def decided_by(key: str, tuned: Mapping[str, float]) -> dict[str, Any]:
    """All that decides a row's figures but the base model, the concepts and the seed."""
    method = METHODS[key]
    what = method.settings(tuned).with_(seed=0)
    return {
        **legacy_names(what),  # as requests are hashed: a setting that is new and off changes no hash
        "rank": RANK,
        "batch": BATCH_SIZE,
        "targets": TARGETS,
        "rank planned for": method.capacity,
        "penalty planned for": method.planned,
        "least contrast": method.contrast,
        "together": method.together,
        "pictures": [subjects.PICTURES, subjects.HELD_OUT, subjects.REFERENCES],
        "drawn": [measures.SAMPLES, measures.STEPS, measures.BASE_EMOJI],
        "judge": file_hash(classifier.WEIGHTS),
        "revision": REVISION,
    }


def settings_hash(decided: Mapping[str, Any]) -> str:
    return request_hash(dict(decided))[:10]


def base_hash(architecture: str) -> str:
    """Of the base model's weights; empty where they are not on this machine."""
    return file_hash({"unet": micro.WEIGHTS, "mmdit": mmdit.WEIGHTS}[architecture])


@cache
def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10] if path.exists() else ""


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{cpu}, one thread a run, torch {torch.__version__.partition('+')[0]}"


@cache
def commit() -> str:
    """Of the code that is running."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def origin(architecture: str) -> dict[str, str]:
    return dict(zip(ORIGIN, (commit(), machine(), base_hash(architecture)), strict=True))


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


def write(path: Path, record: Mapping[str, Any]) -> None:
    """A line for each entry, and for each measure: what changed can be read in a diff."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, value in rounded(record).items():
        text = json.dumps(value, ensure_ascii=False)
        if name in ("measures", "settings"):
            text = "{\n  " + ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
        lines.append(f" {json.dumps(name)}: {text}")
    write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def run_path(folder: Path, architecture: str, key: str, seed: int, count: int) -> Path:
    return folder / architecture / f"{key}-seed{seed}-{count}.json"


def write_run(
    folder: Path, architecture: str, key: str, tuned: Mapping[str, float], seed: int, count: int, measured: Mapping[str, Any]
) -> Path:
    """Files what a run measured, in the place of what the same run measured before."""
    path, decided = run_path(folder, architecture, key, seed, count), decided_by(key, tuned)
    record = {
        "method": key,
        "seed": seed,
        "concepts": count,
        "tuned": dict(tuned),
        "hash": settings_hash(decided),
        **{name: measured[name] for name in ORIGIN},
        "settings": decided,
        "measures": {name: value for name, value in measured.items() if name not in ORIGIN},
    }
    write(path, record)
    return path


def outdated(record: Mapping[str, Any], architecture: str) -> str:
    """In what the code of today would teach or measure otherwise than this run did; empty where it would not."""
    decided = decided_by(record["method"], record["tuned"])
    if record["hash"] == settings_hash(decided):
        here = base_hash(architecture)
        return "base model" if here and record["base model"] and here != record["base model"] else ""
    before = record["settings"]
    names = [name for name in {**before, **decided} if rounded(before.get(name)) != rounded(decided.get(name))]
    return ", ".join(names) or "settings"


def tuning_path(folder: Path, architecture: str, key: str) -> Path:
    return folder / architecture / f"tuning-{key}.json"


def write_tuning(
    folder: Path, architecture: str, key: str, tried: Sequence[Mapping[str, Any]], chosen: Mapping[str, float]
) -> None:
    """`tried`: of each setting of the method's grid `tuned`, `identity` and `base`."""
    record = {"method": key, **origin(architecture), "chosen": dict(chosen), "tried": list(tried)}
    write(tuning_path(folder, architecture, key), record)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_runs(folder: Path, architecture: str) -> list[dict[str, Any]]:
    """All runs of one base model; of each also the `path` and in what it is `outdated`."""
    found = [(path, read(path)) for path in sorted((folder / architecture).glob("*-seed*-*.json"))]
    known = [(path, record) for path, record in found if record["method"] in METHODS]
    return [record | {"path": path, "outdated": outdated(record, architecture)} for path, record in known]
