"""A disk that is full at any point of filing a concept: the old library stays, and the message names the disk.

The largest size of a file is limited; and where the system lets us mount one, a small file system runs full as well.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seqlora.errors import SeqLoRAError
from seqlora.library.repair import repair
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.method.trained import TrainedConcept
from tests.robustness.common import check, in_child, taught_library, workplace
from tests.support.small import contents

COUNT = 50
ROOM = 256 << 10  # bytes of a small file system beside what the library takes


def file_concept(path: Path, replaces: str | None) -> str:
    """The commit alone, of a concept as large as the others. Says how it ended."""
    with Library.open(path).writing() as writer:
        library = writer.library
        trained = TrainedConcept(library.load("dog"), library.moments("dog"), [])
        try:
            writer.add(replaces or "bird", "zyx", "thing", trained, {}, thumbnail=library.thumbnail("dog"), replaces=replaces)
        except SeqLoRAError as error:
            return str(error)
    return "filed"


def within_limit(path: Path, limit: int, replaces: str | None) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return file_concept(path, replaces)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Whether a file system of its own is there now; only root may mount one, and not everywhere."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = hasattr(os, "geteuid") and os.geteuid() == 0 and not subprocess.run(options, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, free: int) -> None:
    """Leaves so many bytes, to a page."""
    with open(disk / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, max(1, shutil.disk_usage(disk).free - free))


def look_after(path: Path, told: str, before: dict[str, bytes], replaces: str | None) -> dict[str, Any]:
    """The old library, or the new one where the disk sufficed; clean, or clean after a repair."""
    library = Library.open(path)
    if told == "filed":
        check("bird" in library.names or library.names == ["dog", "cat"], f"filed, but holds {library.names}")
        return {"filed": 1}
    check("the disk is full, free some space and try again." in told, f"not told well: {told}")
    check(library.names == ["cat", "dog"], f"holds {library.names}")
    check(before.items() <= contents(path).items(), "a file of the old library has changed")
    findings = verify(path)
    if findings:
        repair(path)
    check(verify(path) == [] and Library.open(path).names[:2] == ["cat", "dog"], f"not clean: {verify(path)}")
    return {"refused": 1, "repaired": bool(findings)}


def run(count: int = COUNT, seed: int = 0) -> str:
    totals: Counter[str] = Counter()
    with workplace() as folder:
        template = folder / "template"
        in_child(lambda: taught_library(template))
        before = contents(template)
        largest = max(map(len, before.values()))
        whole = sum(map(len, before.values()))
        with small_disk(folder / "disk") as mounted:
            for number in range(count):
                replaces = "cat" if number % 2 else None
                share = (number // 2 + 0.5) / (count // 2 + 1)
                for kind in ("limited", "small disk") if mounted else ("limited",):
                    path = (folder / "disk" if kind == "small disk" else folder) / "pets"
                    shutil.copytree(template, path)
                    if kind == "limited":
                        told = in_child(lambda p=path, r=replaces, s=share: within_limit(p, int(s * largest * 1.1), r))
                    else:
                        fill(folder / "disk", int(share * whole * 0.6))
                        told = in_child(lambda p=path, r=replaces: file_concept(p, r))
                        (folder / "disk" / "filler").unlink()
                    totals.update(in_child(lambda p=path, t=told, r=replaces: look_after(p, t, before, r)))
                    totals[kind] += 1
                    shutil.rmtree(path)
    kinds = f"{totals['limited']} by file size, {totals['small disk']} on a small file system"
    return (
        f"{totals['limited'] + totals['small disk']} commits ({kinds}): {totals['refused']} ran out of disk and said so with "
        f"the old library intact ({totals['repaired']} of these needed one repair), {totals['filed']} had enough"
    )
