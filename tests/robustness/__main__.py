"""Tries to lose work and to break trust: `make torture`, or `python -m tests.robustness [part ...] [--count N] [--seed N]`.

Every part prints its figures, or the first thing that went wrong; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.robustness import cancel_host, disk, kill, mutations, opening, paths, writers

PARTS = {
    "kill": kill,
    "mutations": mutations,
    "disk": disk,
    "writers": writers,
    "paths": paths,
    "opening": opening,
    "cancel": cancel_host,
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them if none is given")
    options.add_argument("--count", type=int, help="fewer (or more) rounds than usual")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    wrong = 0
    for name in given.parts or PARTS:
        part, began = PARTS[name], time.monotonic()
        try:
            told = part.run(given.count or part.COUNT, given.seed)
        except AssertionError as error:
            told, wrong = f"FAILED: {error}", 1
        print(f"{name}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
