"""A library as one file, to hand on or to keep: a zip archive of its folder.

It is stored without compression, since numbers do not compress, and holds one folder of the library's name, so that whoever has
no other means unzips it by hand. What comes from others is checked before any of it is where libraries are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import SeqLoRAError
from ..io.atomic import remedy
from ..io.names import checked_name, collision_key
from .copy import MAX_FILE, contents, files
from .manifest import MAX_BYTES, parse
from .store import Library
from .verify import verify
from .view import digest_of, inside
from .writer import MANIFEST

SUFFIX = ".zip"
EXPANDS = 4  # times the archive's own size, at most: numbers do not
AT_ONCE = 1 << 22  # bytes


def pack(library: Library, file: Path) -> Path:
    """Writes a library, checked, with what is needed to teach more; unfinished trainings stay behind.

    Returns the file. Raises SeqLoRAError, with nothing written, where a file is not as the library knows it.
    """
    if file.suffix.lower() != SUFFIX or file.is_dir():
        raise SeqLoRAError(f"'{file.name}' is no name for a library's file", f"end it with {SUFFIX}")
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
            for name, data in contents(library):
                archive.writestr(f"{library.path.name}/{name}", data)
            archive.writestr(f"{library.path.name}/{MANIFEST}", library.manifest.to_bytes())
        os.replace(beside, file)
    except OSError as error:
        raise SeqLoRAError(f"Could not write {file} ({error.strerror})", remedy(error)) from error
    finally:
        with suppress(OSError):
            beside.unlink()
    return file


def name_of(file: Path) -> str:
    """What the library in this file is called. Raises SeqLoRAError where there is none in it."""
    with _opened(file) as archive:
        return _root(archive, file)


def free_name(name: str, taken: Iterable[str]) -> str:
    """The name, with a number behind it where it is taken."""
    keys = {collision_key(known) for known in taken}
    numbered = (f"{name[:58]} {number}" for number in range(2, len(keys) + 3))
    return next(found for found in (name, *numbered) if collision_key(found) not in keys)


def unpack(file: Path, path: Path) -> Library:
    """Makes a library of what `pack` wrote, at `path`, whose name it takes.

    Everything is checked as `verify` does before it is there. Raises SeqLoRAError, with nothing left behind, where something is
    at `path`, or the file is damaged, forged, or no library.
    """
    checked_name(path.name, "library name")
    if os.path.lexists(path):
        raise SeqLoRAError(f"There is something at {path} already", "choose another name")
    with _opened(file) as archive:
        root = _root(archive, file)
        if sum(entry.file_size for entry in archive.infolist()) > EXPANDS * file.stat().st_size + AT_ONCE:
            raise SeqLoRAError(f"{file.name} unpacks to far more than it holds", "it was tampered with, get it anew")
        with _folder_beside(path) as folder:
            data = archive.read(f"{root}/{MANIFEST}")
            (folder / MANIFEST).write_bytes(data)
            try:
                library = Library(folder, parse(data), digest_of(data))
            except ValueError as error:
                raise SeqLoRAError(f"The list of concepts in {file.name} is damaged ({error})", "get it anew") from error
            for name, _ in files(library):
                _extract(archive, f"{root}/{name}", inside(folder, name), file)
            wrong = verify(folder)
            if wrong:
                raise SeqLoRAError(f"{file.name} is damaged: {wrong[0].replace(str(folder), root)}", "get it anew")
            try:
                os.rename(folder, path)
            except OSError as error:
                raise SeqLoRAError(f"Could not make {path} ({error.strerror})", remedy(error)) from error
    return Library.open(path)


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise SeqLoRAError(f"{file.name} is no library's file, or not a whole one", "get it anew") from error
    except (RuntimeError, NotImplementedError, zipfile.LargeZipFile) as error:  # encrypted, or by a method that Python lacks
        raise SeqLoRAError(f"{file.name} cannot be read ({error})", "pack it without a password or compression") from error
    except OSError as error:
        raise SeqLoRAError(f"Could not read {file} ({error.strerror})", remedy(error)) from error


def _root(archive: zipfile.ZipFile, file: Path) -> str:
    manifests = [
        entry for entry in archive.infolist() if entry.filename.endswith(f"/{MANIFEST}") and entry.filename.count("/") == 1
    ]
    if len(manifests) != 1 or manifests[0].file_size > MAX_BYTES:
        raise SeqLoRAError(f"There is no library in {file.name}", "choose a file that was packed by this pack")
    return checked_name(manifests[0].filename.partition("/")[0], "library name")


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """One that becomes `path` or goes again. Its name begins with a dot, so nobody takes it for a library."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=path.parent))
        folder.chmod(0o755)
    except OSError as error:
        raise SeqLoRAError(f"Could not write to {path.parent} ({error.strerror})", remedy(error)) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(archive: zipfile.ZipFile, name: str, to: Path, file: Path) -> None:
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise SeqLoRAError(f"{file.name} lacks {name}", "get it anew") from error
    if entry.file_size > MAX_FILE:
        raise SeqLoRAError(f"{name} in {file.name} is larger than any concept", "get it anew")
    to.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, to.open("wb") as target:
        shutil.copyfileobj(source, target, AT_ONCE)
