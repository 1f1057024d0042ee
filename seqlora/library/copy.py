"""Copying a part of a library."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import SeqLoRAError
from ..io.atomic import RESTORE, remedy, write_bytes
from ..io.names import checked_name
from ..io.safetensors_file import read_bytes
from .store import Library
from .view import PRIOR, moments_file
from .writer import LibraryWriter

MAX_FILE = 8 << 30  # bytes; the largest that is copied


def copy(library: Library, names: Sequence[str], path: Path) -> Library:
    """A new library of some of the concepts, with their numbers. Raises SeqLoRAError, with nothing written, where there is
    something already or a file is not as it was written."""
    checked_name(path.name, "library name")
    if os.path.lexists(path):
        raise SeqLoRAError(f"There is something at {path} already", "choose another name")
    chosen = [library.find(name) for name in names]
    if not chosen:
        raise SeqLoRAError("No concept is named", "name at least one")
    part = library.having(concepts=tuple(record for record in library.concepts if record in chosen))
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise SeqLoRAError(f"Could not make {path} ({error.strerror})", remedy(error)) from error
    try:
        for file, data in contents(part):
            write_bytes(path / file, data)
        return LibraryWriter(replace(part, path=path)).save()
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def contents(library: Library) -> Iterator[tuple[str, bytes]]:
    """What is in all files but the manifest. Raises SeqLoRAError for one that is not as it was written."""
    for file, sha256 in files(library):
        data = bytes(read_bytes(library.inside(file), MAX_FILE))
        if sha256 not in ("", hashlib.sha256(data).hexdigest()):
            raise SeqLoRAError(f"{library.path / file} was changed since it was written", RESTORE)
        yield file, data


def files(library: Library) -> Iterator[tuple[str, str]]:
    """All files but the manifest, with their hashes where these are known."""
    if library.manifest.prior_sha256:
        yield PRIOR, library.manifest.prior_sha256
    for record in library.concepts:
        yield record.file, record.sha256
        yield moments_file(record.id), record.moments_sha256
