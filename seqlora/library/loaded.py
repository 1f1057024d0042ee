"""Concept files that were loaded and checked, so that a new strength reads nothing again.

A file counts as the one that was checked as long as its hash in the manifest, its size and its time are the same. What is kept
lies on disk: it takes no memory that anybody else needs.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..lora.types import LoRAPair

MOST = 256  # files
SETTLED = 2_000_000_000  # nanoseconds after which two writes have two times on every file system
_kept: OrderedDict[Any, dict[str, LoRAPair]] = OrderedDict()
_lock = threading.Lock()


def get(path: Path, sha256: str, rank: int, capacity: int, layers: Mapping[str, Sequence[int]]) -> dict[str, LoRAPair] | None:
    """The concept in a file, where it was checked for a library of these layers and ranks; a mapping of its own."""
    key = _key(path, sha256, rank, capacity, layers)
    with _lock:
        if key not in _kept:
            return None
        _kept.move_to_end(key)
        return dict(_kept[key])


def keep(
    concept: dict[str, LoRAPair], path: Path, sha256: str, rank: int, capacity: int, layers: Mapping[str, Sequence[int]]
) -> None:
    """Unless the file is so new that its time may not tell it from one that is written right after."""
    key = _key(path, sha256, rank, capacity, layers)
    with _lock:
        if key is not None and time.time_ns() - key[2] > SETTLED:
            _kept[key] = dict(concept)
        while len(_kept) > MOST:
            _kept.popitem(last=False)


def forget(path: Path) -> None:
    """Before a file is deleted: Windows deletes none that somebody has open."""
    with _lock:
        for key in [key for key in _kept if key[0] == str(path)]:
            del _kept[key]


def _key(path: Path, sha256: str, rank: int, capacity: int, layers: Mapping[str, Sequence[int]]) -> Any:
    """None for a file that is not there: it is kept nowhere."""
    try:
        found = path.stat()
    except OSError:
        return None
    shapes = hash(tuple((name, *shape) for name, shape in layers.items()))
    return str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, sha256, rank, capacity, shapes
