"""Cancels a training in a real ComfyUI 20 times in a row, each time some random steps further, then lets it end.

`python scripts/torture/cancel_host.py` ends with 1 unless the concept is taught in the end, every cancel left the library as
it was, the user's model drew the same bits throughout, and the server's memory is within 2 % of what the first cancel left.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seqlora.library import MANIFEST, Library  # noqa: E402
from tests.hosts import HostServer  # noqa: E402
from tests.prompts import cancel_at, draw, teaching  # noqa: E402

GROWTH = 0.02


def resident(pid: int) -> int:
    """Bytes of memory that a process holds (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


def torture(server: HostServer, cancels: int, seed: int) -> list[str]:
    """What went wrong."""
    rng, wrong, reached, memory = random.Random(seed), [], 0, []
    prompt = teaching("tortured", steps=cancels * 12)
    path = server.models_dir / "seqlora" / "tortured"
    bare = draw(server, 0)
    for number in range(1, cancels + 1):
        reached = cancel_at(server, prompt, reached + rng.randint(1, 10))
        library = Library.open(path)
        if library.names or library.base or {file.name for file in path.iterdir()} - {MANIFEST, ".lock", "checkpoints"}:
            wrong.append(f"cancel {number} changed the library")
        if draw(server, number) != bare:
            wrong.append(f"cancel {number} changed the user's model")
        memory.append(resident(server.pid))
        print(f"cancelled at step {reached} of {cancels * 12}, {memory[-1] / 2**20:.1f} MB", flush=True)
    growth = memory[-1] / memory[0] - 1
    if growth > GROWTH:
        wrong.append(f"memory grew by {growth:.1%} since the first cancel")
    server.run(prompt)
    if Library.open(path).names != ["first"] or (path / "checkpoints").exists():
        wrong.append("the concept was not filed")
    if draw(server, cancels + 1) != bare:
        wrong.append("the end changed the user's model")
    print(f"memory {growth:+.2%} since the first cancel; {'; '.join(wrong) or 'all as it should be'}")
    return wrong


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cancels", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with HostServer() as server:
        return bool(torture(server, given.cancels, given.seed))


if __name__ == "__main__":
    sys.exit(main())
