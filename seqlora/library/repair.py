"""Setting a library right."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..errors import SeqLoRAError
from ..io.atomic import remedy
from ..io.names import collision_key
from ..io.safetensors_file import read_bytes
from .lock import LibraryLock
from .manifest import Manifest, Record, UnknownFormatError
from .store import Library
from .verify import Basis, basis_of, check_orthogonal, read_described, untracked_files
from .writer import MANIFEST, LibraryWriter

DAMAGED = "damaged"  # folder for what cannot be used; nothing that could hold a taught concept is deleted


def repair(path: Path) -> tuple[Library, list[str]]:
    """Makes the manifest and the files agree, from the files' own headers; returns the library and what was done, a sentence
    each. Running it again does nothing.

    Concepts that the manifest lists stay if their files are as they were written. Concept files that it does not list (all,
    where it is lost) are taken in if they are whole, belong to this library, and fit beside the others: another number and
    name, orthogonal where they were taught to be. All other files of ours go to `damaged/`; halves of files are deleted.
    Raises SeqLoRAError where another version wrote the library, a training is at work, or there is nothing to go by.
    """
    if not (path / "concepts").is_dir() and not (path / MANIFEST).exists():
        raise SeqLoRAError(f"There is no library at {path}", "create it first")
    with LibraryLock(path).short():
        return _repair(path)


def _repair(path: Path) -> tuple[Library, list[str]]:
    done: list[str] = []
    try:
        listed = before = Library.open(path)
    except UnknownFormatError:
        raise
    except SeqLoRAError:
        listed, before = Library(path, _unlisted(path)), None
        done.append(f"{path / MANIFEST} was rebuilt.")
    if listed.base is None:  # it holds no concept yet, unless in files that were not listed
        with suppress(SeqLoRAError):
            found = _unlisted(path)
            if _kind(replace(found, base=None)) == _kind(listed.manifest):
                listed = Library(path, found)
    kept: list[tuple[Record, Basis]] = []
    for record in listed.concepts:
        try:
            kept.append((record, basis_of(listed, record)))
        except SeqLoRAError as error:
            done.append(f"Concept '{record.name}' was taken out: {error}")
    for record, basis in _found(listed, done):
        try:
            _fit(listed, record, basis, kept)
            kept.append((record, basis))
            done.append(f"Concept '{record.name}' was taken in from {record.file}.")
        except SeqLoRAError as error:
            done.append(str(error))
    library = listed.having(concepts=tuple(sorted((record for record, _ in kept), key=lambda record: record.id)))
    try:
        library.prior()
    except SeqLoRAError as error:
        library = library.having(prior_sha256="")
        done.append(f"{error.problem}; it will be measured again.")
    if before is None or library.manifest != before.manifest:
        if before is None and (path / MANIFEST).exists():
            _set_aside(path, path / MANIFEST)
        library = LibraryWriter(library).save()
    for file in list(untracked_files(library)):
        if file.name.endswith(".tmp"):
            with suppress(OSError):
                file.unlink()
            done.append(f"{file} was half a file and is deleted.")
        else:
            done.append(f"{file} belongs to no concept and is now {_set_aside(path, file)}.")
    return library, done


def _unlisted(path: Path) -> Manifest:
    """The library, without its concepts, that most concept files say they belong to."""
    found: list[Manifest] = []
    for file in sorted((path / "concepts").glob("*.safetensors")):  # in the order of their numbers
        with suppress(SeqLoRAError):
            described, _ = read_described(path, file.relative_to(path).as_posix())
            found.append(replace(described, concepts=()))
    if not found:
        raise SeqLoRAError(f"{path} has no manifest and no concept file to rebuild it from", f"restore {MANIFEST} from a copy")
    votes = Counter(_kind(described) for described in found)
    return [described for described in found if _kind(described) == votes.most_common(1)[0][0]][-1]


def _found(library: Library, done: list[str]) -> Iterator[tuple[Record, Basis]]:
    """Whole concepts in files that the manifest does not list, the newest first: it replaces what has the same name."""
    whole = []
    for path in untracked_files(library):
        if path.parent.name != "concepts" or path.name.endswith(".tmp"):
            continue
        file = path.relative_to(library.path).as_posix()
        try:
            described, record = read_described(library.path, file)
            if _kind(described) != _kind(library.manifest):
                raise SeqLoRAError(f"{path} belongs to another library")
            if not file.isprintable():
                raise SeqLoRAError("its name is no text")
            digest = hashlib.sha256(read_bytes(path, library.concept_limit())).hexdigest()
            record = replace(record, file=file, sha256=digest)
            alone = library.having(concepts=(record,))
            basis = basis_of(alone, record)
            alone.moments(record.name)
            whole.append((record, basis))
        except SeqLoRAError as error:
            done.append(f"{str(path)!r} was not taken in: {error}")
    yield from sorted(whole, key=lambda pair: -pair[0].id)


def _kind(manifest: Manifest) -> bytes:
    """The same for the same settings and model."""
    return replace(manifest, concepts=(), prior_sha256="").to_bytes()


def _fit(library: Library, record: Record, basis: Basis, kept: Sequence[tuple[Record, Basis]]) -> None:
    """Raises SeqLoRAError unless the concept can stand beside those that are kept."""
    for other, other_basis in kept:
        if record.id == other.id or collision_key(record.name) == collision_key(other.name):
            raise SeqLoRAError(f"{library.path / record.file} was not taken in: it is another version of '{other.name}'")
        check_orthogonal(library, (record, basis), (other, other_basis))


def _set_aside(path: Path, file: Path) -> Path:
    place = path / DAMAGED / file.name
    number = 1
    while place.exists():
        number += 1
        place = path / DAMAGED / f"{file.stem}-{number}{file.suffix}"
    try:
        place.parent.mkdir(exist_ok=True)
        os.replace(file, place)
    except OSError as error:
        raise SeqLoRAError(f"Could not move {file} to {place} ({error.strerror})", remedy(error)) from error
    return place
