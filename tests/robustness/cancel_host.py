"""Cancels a training in a real ComfyUI again and again, each time some random steps further, then lets it end."""

from __future__ import annotations

import random
from pathlib import Path

from seqlora.library.lock import LOCK
from seqlora.library.store import Library
from seqlora.library.writer import MANIFEST
from seqlora.training.checkpoint import FOLDER
from tests.support.hosts import NO_HOST, HostServer, find_host
from tests.support.prompts import cancel_at, draw, teaching

COUNT = 20
LONGEST = 10  # steps from one cancel to the next
GROWTH = 0.02  # of the server's memory, from the first cancel to the last


def resident(pid: int) -> int:
    """Bytes of memory that a process holds (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


def run(count: int, seed: int) -> str:
    """The library stays as it was and the user's model draws the same bits throughout; in the end the concept is taught."""
    if find_host() is None:
        return f"skipped, {NO_HOST}"
    with HostServer() as server:
        return cancel(server, count, random.Random(seed))


def cancel(server: HostServer, count: int, rng: random.Random) -> str:
    prompt = teaching("tortured", steps=count * (LONGEST + 2))
    path, reached, memory = server.models_dir / "seqlora" / "tortured", 0, []
    bare = draw(server, 0)
    for number in range(1, count + 1):
        reached = cancel_at(server, prompt, reached + rng.randint(1, LONGEST))
        library = Library.open(path)
        assert not library.names and library.base is None, f"cancel {number} changed the library"
        assert {file.name for file in path.iterdir()} <= {MANIFEST, LOCK, FOLDER}, f"cancel {number} left something behind"
        assert draw(server, number) == bare, f"cancel {number} changed the user's model"
        memory.append(resident(server.pid))
    growth = memory[-1] / memory[0] - 1
    assert growth < GROWTH, f"memory grew by {growth:.1%}"
    server.run(prompt)
    assert Library.open(path).names == ["first"] and not (path / FOLDER).exists(), "the concept was not filed"
    assert draw(server, count + 1) == bare, "the training's end changed the user's model"
    return f"{count} cancels up to step {reached}, then taught; same bits drawn throughout, memory {growth:+.2%}"
