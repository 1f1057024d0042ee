"""A library on disk: an ordered set of concepts that were taught to be used together.

    library.json                     what it holds; written last, so it never names a file that is not whole
    concepts/0001-<slug>.safetensors ordinary LoRA files (B orthonormal, alpha = r)
    moments/base.safetensors, 0001.safetensors   second moments on generic captions and on each concept
    checkpoints/                     unfinished trainings, see checkpoint.py
    damaged/                         what a repair set aside, see repair.py

A `Library` is an immutable view of one state of the folder; a `LibraryWriter` makes the next one. The folder itself may be a
link, since whoever put it there chose so; inside, nothing that leads out of it is opened or written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import SeqLoRAError
from ..io.atomic import RESTORE, is_within, remedy
from ..io.names import checked_name, collision_key
from ..io.safetensors_file import read_bytes
from ..settings import LibraryPlan
from . import manifest
from .lock import LibraryLock
from .manifest import Manifest, UnknownFormatError
from .view import LibraryView, digest_of
from .writer import MANIFEST, LibraryWriter


class Library(LibraryView):
    """A library: what it holds (see `LibraryView`), and how one gets it."""

    @classmethod
    def create(cls, path: Path | str, rank: int, capacity: int, targets: str) -> Library:
        """Makes an empty library, or opens the one that is there if it agrees. An empty one is made anew where it does not."""
        path = Path(path)
        checked_name(path.name, "library name")
        LibraryPlan(rank, capacity, targets)  # what cannot be is said before there is a folder
        if not (path / MANIFEST).exists():
            _check_beside(path)
            try:
                path.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise SeqLoRAError(
                    f"{path} is a file, or a link that leads nowhere", "remove it or choose another name"
                ) from error
            except OSError as error:
                raise SeqLoRAError(f"Could not make {path} ({error.strerror})", remedy(error)) from error
            with LibraryLock(path).short():
                if not (path / MANIFEST).exists():  # still: another process may make the same
                    if any((path / "concepts").glob("*.safetensors")):
                        raise SeqLoRAError(
                            f"{path} has concepts but no {MANIFEST}", f"{RESTORE}, or rebuild it with: seqlora repair"
                        )
                    return LibraryWriter(cls(path, Manifest(rank, capacity, targets))).save()
        library = cls.open(path)
        wanted = {"rank": rank, "capacity": capacity, "targets": targets}
        other = [what for what, value in wanted.items() if getattr(library, what) != value]
        if other and library.is_empty:  # nothing in it depends on what it was made with
            with LibraryLock(path).short():
                library = cls.open(path)
                if library.is_empty:
                    return LibraryWriter(cls(path, Manifest(rank, capacity, targets))).save()
        for what in other:
            found = getattr(library, what)
            raise SeqLoRAError(
                f"Library '{path.name}' exists with {what} {found}, not {wanted[what]}",
                f"set {what} to {found} or choose another name",
            )
        return library

    @classmethod
    def open(cls, path: Path | str) -> Library:
        """Reads the manifest only. Raises SeqLoRAError where there is none or it is damaged."""
        path = Path(path)
        file = path / MANIFEST
        try:
            file.lstat()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SeqLoRAError(f"There is no library at {path} ({reason})", "create it first") from error
        if not is_within(file, path):
            raise SeqLoRAError(f"{file} leads out of the library's folder", RESTORE)
        data = read_bytes(file, manifest.MAX_BYTES)
        try:
            return cls(path, manifest.parse(data), digest_of(data))
        except UnknownFormatError as error:
            raise UnknownFormatError(f"{file} {error.problem}", error.remedy) from error
        except ValueError as error:
            raise SeqLoRAError(f"{file} is damaged ({error})", f"{RESTORE}, or rebuild it with: seqlora repair") from error

    @contextmanager
    def writing(self, lock: LibraryLock | None = None) -> Iterator[LibraryWriter[Library]]:
        """A writer of the library as it is now; one at a time. `lock` is one that is held already; it is released at the end.

        Without one it is for short work: raises SeqLoRAError where a training does not let go within PATIENCE seconds.
        """
        if lock is None:
            lock = LibraryLock(self.path)
            lock.acquire_soon()
        try:
            yield LibraryWriter(Library.open(self.path))
        finally:
            lock.release()


def _check_beside(path: Path) -> None:
    """Raises SeqLoRAError where some file systems take a library's name for the new one: by case, or by composed letters."""
    for manifest_file in path.parent.glob(f"*/{MANIFEST}"):
        name = manifest_file.parent.name
        if name != path.name and collision_key(name) == collision_key(path.name):
            raise SeqLoRAError(
                f"There is a library '{name}' at {path.parent}, which many systems take for '{path.name}'",
                "open that one or choose another name",
            )


def request_hash(*parts: Any) -> str:
    """A hash of everything that decides how a concept comes out."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
