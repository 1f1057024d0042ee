"""Whether a library is what it says it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SeqLoRAError
from ..io.atomic import is_within
from ..io.safetensors_file import read_metadata
from .lock import LibraryLock
from .manifest import Manifest, Record, parse
from .store import Library
from .view import ORTHOGONALITY, PRIOR, inside, moments_file
from .writer import MANIFEST

# Where our own files are, and how they are called; whatever else lies there is not ours to judge.
FILES = {"": (), "concepts": ("*.safetensors",), "moments": ("*.safetensors",), "checkpoints": ()}
REPAIR = "run: seqlora repair"
Basis = dict[str, Tensor]  # layer -> B


def verify(path: Path) -> list[str]:
    """What is wrong with a library, a sentence each that names the file and says what to do; nothing if all is well.

    Reads every file. While a training is at work, its unfinished files are not looked at. Raises nothing for what is damaged.
    """
    try:
        library = Library.open(path)
        lock = LibraryLock(path)
        try:
            alone = lock.acquire(timeout=0)
        except SeqLoRAError:
            alone = False  # the folder is read-only, so nobody writes
        try:
            return [*_findings(library), *(_leftovers(Library.open(path)) if alone else ())]
        finally:
            if alone:
                lock.release()
    except SeqLoRAError as error:
        return [str(error)]


def _findings(library: Library) -> Iterator[str]:
    numbers = [record.id for record in library.concepts]
    if numbers != sorted(numbers):
        yield f"{library.path / MANIFEST} does not list the concepts in the order of their numbers; {REPAIR}."
    yield from _told(library.prior)
    earlier: list[tuple[Record, Basis]] = []
    for record in library.concepts:
        yield from _told(_check_concept, library, record, earlier)
        yield from _told(library.vectors, record.name)
        yield from _told(library.moments, record.name)


def _told(check: Callable[..., Any], *args: Any) -> Iterator[str]:
    try:
        check(*args)
    except SeqLoRAError as error:
        yield str(error)


def _check_concept(library: Library, record: Record, earlier: list[tuple[Record, Basis]]) -> None:
    """Adds its basis to those of the earlier ones."""
    basis = basis_of(library, record)
    check_header(library, record)
    for other, other_basis in earlier:
        check_orthogonal(library, (record, basis), (other, other_basis))
    earlier.append((record, basis))


def basis_of(library: Library, record: Record) -> Basis:
    """Raises SeqLoRAError as `Library.load`."""
    return {layer: pair.basis.float() for layer, pair in library.load(record.name).items()}


def check_orthogonal(library: Library, one: tuple[Record, Basis], other: tuple[Record, Basis]) -> None:
    """Raises SeqLoRAError unless the later is orthogonal to the earlier in every layer in which it was taught to be."""
    (earlier, fixed), (later, basis) = sorted((one, other), key=lambda pair: pair[0].id)
    if later.settings.get("orthogonality") != "exact":
        return
    for layer in basis.keys() - set(later.full_layers):
        entry = float((basis[layer].mT @ fixed[layer]).abs().max())
        if entry > ORTHOGONALITY:
            raise SeqLoRAError(
                f"{library.path / later.file} is not orthogonal to concept '{earlier.name}' in layer {layer} "
                f"(entry {entry:.1e})",
                f"restore it from a copy, or teach '{later.name}' anew",
            )


def check_header(library: Library, record: Record) -> None:
    """Raises SeqLoRAError unless the file's header says of library and concept what the manifest does."""
    described, told = read_described(library.path, record.file)
    told = replace(told, file=record.file, sha256=record.sha256)
    if _text(described, told) != _text(library.manifest, record):
        raise SeqLoRAError(
            f"{library.path / record.file} describes another concept than the manifest", "restore it from a copy"
        )


def read_described(folder: Path, file: str) -> tuple[Manifest, Record]:
    """The library and the concept that a concept file's header describes."""
    path = inside(folder, file)
    metadata = read_metadata(path)
    try:
        described = parse(metadata["seqlora"])
        (record,) = described.concepts
    except (KeyError, ValueError) as error:
        raise SeqLoRAError(f"{path} does not say which concept it is", "restore it from a copy") from error
    return described, record


def _text(manifest: Manifest, record: Record) -> bytes:
    """What two descriptions of one concept are compared by: as text NaN equals NaN. When G was measured makes no difference."""
    return replace(manifest, prior_sha256="", concepts=(record,)).to_bytes()


def untracked_files(library: Library) -> Iterator[Path]:
    """Files of our kinds that the manifest does not know: not filed yet, or not deleted yet, when a process died."""
    known = {PRIOR} if library.manifest.prior_sha256 else set()
    for record in library.concepts:
        known |= {record.file, moments_file(record.id)}
    for folder, patterns in FILES.items():
        if not is_within(library.path / folder, library.path):
            raise SeqLoRAError(f"{library.path / folder} leads out of the library's folder", "put a folder there instead")
        for pattern in (*patterns, ".*.tmp"):
            for path in sorted((library.path / folder).glob(pattern)):
                if path.relative_to(library.path).as_posix() not in known:
                    yield path


def _leftovers(library: Library) -> Iterator[str]:
    try:
        for path in untracked_files(library):
            yield f"{path} belongs to no concept, an interruption left it; {REPAIR}."
    except SeqLoRAError as error:
        yield str(error)
