"""A library on disk: an ordered set of concepts that were taught to be used together.

    library.json                     what it holds; written last, so it never names a file that is not whole
    concepts/0001-<slug>.safetensors ordinary LoRA files (B orthonormal, alpha = r)
    moments/base.safetensors, 0001.safetensors   second moments on generic captions and on each concept
    checkpoints/                     unfinished trainings, see checkpoint.py
    damaged/                         what a repair set aside, see upkeep.py

A `Library` is an immutable view of one state of the folder; operations that write return the next one. The folder itself may
be a link, since whoever put it there chose so; inside, nothing that leads out of it is opened or written.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..errors import SeqLoRAError
from ..io.atomic import RESTORE, is_within, remedy, write_bytes
from ..io.names import checked_name, collision_key, slug
from ..io.safetensors_file import MAX_HEADER, read_bytes, read_header, read_tensors, write_tensors
from ..lora.formats import from_native, to_native
from ..lora.ranks import layer_rank
from ..lora.targets import TARGETS
from ..lora.types import Concept, LoRAPair
from ..method.moments import Moments
from ..method.trained import TrainedConcept
from . import manifest, thumbnails
from .manifest import Base, Record, UnknownFormatError
from .moments_file import read_moments, write_moments

__all__ = ["MANIFEST", "Base", "Library", "Record", "LibraryLock", "request_hash"]

MANIFEST = "library.json"
LOCK = ".lock"
PRIOR = "moments/base.safetensors"
PATIENCE = 5.0  # seconds that short work waits for a training
ORTHOGONALITY = 1e-3  # largest error of B'B = I that a file may have; fp16 files reach 2e-4


@dataclass(frozen=True)
class Library:
    path: Path
    rank: int
    capacity: int
    targets: str
    base: Base | None = None
    concepts: tuple[Record, ...] = ()
    digest: str = ""
    prior_sha256: str = ""  # of the model's own moments, once they were measured

    # -- opening and creating

    @classmethod
    def create(cls, path: Path, rank: int, capacity: int, targets: str) -> Library:
        """Makes an empty library, or opens the one that is there if it agrees."""
        checked_name(path.name, "library name")
        if rank < 1 or capacity < 1:
            raise SeqLoRAError(f"rank is {rank} and capacity is {capacity}; both must be at least 1.")
        if targets not in TARGETS:
            raise SeqLoRAError(f"targets is '{targets}', but must be one of: {', '.join(TARGETS)}.")
        if not (path / MANIFEST).exists():
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SeqLoRAError(f"Could not make {path} ({error.strerror}); {remedy(error)}.") from error
            with LibraryLock(path).short():
                if not (path / MANIFEST).exists():  # still: another process may make the same
                    if any((path / "concepts").glob("*.safetensors")):
                        raise SeqLoRAError(
                            f"{path} has concepts but no {MANIFEST}; {RESTORE}, or rebuild it with: seqlora repair."
                        )
                    return cls(path, rank, capacity, targets).save()
        library = cls.open(path)
        for what, wanted in (("rank", rank), ("capacity", capacity), ("targets", targets)):
            found = getattr(library, what)
            if found != wanted:
                raise SeqLoRAError(
                    f"Library '{path.name}' exists with {what} {found}, not {wanted}; "
                    f"set {what} to {found} or choose another name."
                )
        return library

    @classmethod
    def open(cls, path: Path) -> Library:
        """Reads the manifest only. Raises SeqLoRAError where there is none or it is damaged."""
        file = path / MANIFEST
        try:
            file.lstat()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SeqLoRAError(f"There is no library at {path} ({reason}); create it first.") from error
        if not is_within(file, path):
            raise SeqLoRAError(f"{file} leads out of the library's folder; {RESTORE}.")
        data = read_bytes(file, manifest.MAX_BYTES)
        try:
            return cls(path, **manifest.parse(data), digest=_digest(data))
        except UnknownFormatError as error:
            raise SeqLoRAError(f"{file} has format {error}; this version reads {manifest.FORMAT}. Update the pack.") from error
        except ValueError as error:
            raise SeqLoRAError(f"{file} is damaged ({error}); {RESTORE}, or rebuild it with: seqlora repair.") from error

    def text(self, indent: int | None = 1) -> bytes:
        """As the manifest has it."""
        fields = (self.rank, self.capacity, self.targets, self.base, self.prior_sha256, self.concepts)
        return manifest.write(*fields, indent=indent)

    def save(self) -> Library:
        """Writes the manifest, and with it whatever was changed; call inside `writing()`."""
        data = self.text()
        write_bytes(self.path / MANIFEST, data)
        return replace(self, digest=_digest(data))

    @contextmanager
    def writing(self) -> Iterator[Library]:
        """The library as it is now, for short work on it: one writer at a time.

        Raises SeqLoRAError where a training does not let go of it within PATIENCE seconds.
        """
        with LibraryLock(self.path).short():
            yield Library.open(self.path)

    # -- what it holds

    @property
    def names(self) -> list[str]:
        return [record.name for record in self.concepts]

    def find(self, name: str) -> Record:
        for record in self.concepts:
            if record.name == name:
                return record
        raise SeqLoRAError(
            f"Library '{self.path.name}' has no concept '{name}'; it has: {', '.join(self.names) or 'none yet'}."
        )

    def ranks(self, layers: Mapping[str, Sequence[int]]) -> dict[str, int]:
        return {name: self._rank(n) for name, (_, n) in layers.items()}

    def load(self, name: str) -> dict[str, LoRAPair]:
        """A concept's pairs, checked: hash, shapes, dtype, finite, orthonormal. Raises SeqLoRAError naming the file."""
        path, tensors = self._read(self.find(name))
        try:
            concept = from_native(tensors)
        except SeqLoRAError as error:
            raise SeqLoRAError(f"{path} is no concept file: {error}") from error
        self._check(path, concept)
        return concept

    def _read(self, record: Record) -> tuple[Path, dict[str, Tensor]]:
        path, advice = self.inside(record.file), f"{RESTORE}, or remove concept '{record.name}'"
        return path, read_tensors(path, self.concept_limit(), advice, record.sha256)[0]

    def concept_limit(self) -> int:
        """No concept file of this library has more bytes."""
        layers = self.base.layers if self.base else {}
        return MAX_HEADER + sum(4 * ((m + n) * self._rank(n) + 1) for m, n in layers.values())

    def _rank(self, width: int) -> int:
        return layer_rank(width, self.rank, self.capacity)

    def _check(self, path: Path, concept: Concept) -> None:
        layers = self.base.layers if self.base else {}
        for layer in layers:
            if layer not in concept:
                raise SeqLoRAError(f"{path}: layer {layer} is missing; restore the file.")
        for layer, (A, B) in concept.items():
            m, n = layers.get(layer, (0, 0))
            if (A.shape, B.shape) != ((m, self._rank(n)), (n, self._rank(n))):
                raise SeqLoRAError(f"{path}: layer {layer} does not fit this library's model; restore the file.")
            if A.dtype not in (torch.float32, torch.float16, torch.bfloat16) or B.dtype != A.dtype:
                raise SeqLoRAError(f"{path}: layer {layer} has dtype {A.dtype}; it must be float32, float16 or bfloat16.")
            if not (A.isfinite().all() and B.isfinite().all()):
                raise SeqLoRAError(f"{path}: layer {layer} holds values that are not numbers; restore the file.")
            error = float((B.float().mT @ B.float() - torch.eye(B.shape[1])).abs().max())
            if error > ORTHOGONALITY:
                raise SeqLoRAError(
                    f"{path}: the basis of layer {layer} is not orthonormal (error {error:.1e}); restore the file."
                )

    def inside(self, relative: str) -> Path:
        """A file of this library. Raises SeqLoRAError where the name, or a link, leads out of its folder."""
        path = self.path / relative
        if not is_within(path, self.path):
            raise SeqLoRAError(
                f"Library '{self.path.name}' names a file outside its folder ({relative}); it was tampered with, {RESTORE}."
            )
        return path

    def prior(self) -> Moments | None:
        """G, once it was measured."""
        if not self.base or not self.prior_sha256:
            return None
        advice = f"{RESTORE}, or run: seqlora repair"
        return read_moments(self.inside(PRIOR), self.base.layers, self.prior_sha256, advice, felt=True)

    def moments(self, name: str) -> Moments:
        record = self.find(name)
        layers = self.base.layers if self.base else {}
        advice = f"{RESTORE}, or remove concept '{name}'"
        return read_moments(self.inside(moments_file(record.id)), layers, record.moments_sha256, advice)

    def moments_sum(self) -> Moments | None:
        total: Moments | None = None
        for record in self.concepts:
            moments = self.moments(record.name)
            total = moments if total is None else total + moments
        return total

    def thumbnail(self, name: str) -> str:
        """A small picture of the concept as a data URI, or "" where its file has none that can be used."""
        uri = read_header(self.inside(self.find(name).file)).metadata.get(thumbnails.KEY, "")
        with suppress(ValueError):
            thumbnails.decode(uri)
            return uri
        return ""

    def check_base(self, layers: Mapping[str, Sequence[int]]) -> None:
        """Raises SeqLoRAError naming the first layer in which a model differs from this library's."""
        if self.base is None:
            return
        for name in dict.fromkeys([*self.base.layers, *layers]):
            ours, theirs = self.base.layers.get(name), layers.get(name)
            if ours is None or theirs is None or list(ours) != list(theirs):
                found = f"is {theirs[0]} x {theirs[1]}" if theirs else "is missing"
                wanted = f"{ours[0]} x {ours[1]}" if ours else "no such layer"
                raise SeqLoRAError(
                    f"Library '{self.path.name}' belongs to another model ({self.base.family}): "
                    f"layer {name} {found} here, {wanted} there; choose another library or model."
                )

    # -- writing

    def with_base(self, base: Base, prior: Moments | None) -> Library:
        """Binds a new library to its model and files the model's own moments."""
        bound = self if self.base else replace(self, base=base)
        if prior is not None and not self.prior_sha256:
            bound = replace(bound, prior_sha256=write_moments(self.inside(PRIOR), prior))
        return self if bound is self else bound.save()

    def add(
        self,
        name: str,
        trigger: str,
        class_word: str,
        trained: TrainedConcept,
        settings: Mapping[str, Any],
        request: str = "",
        metrics: Mapping[str, Any] | None = None,
        thumbnail: str = "",
        replaces: str | None = None,
    ) -> Library:
        """Files a taught concept as the last one; call inside `writing()`. Returns the library that has it.

        `replaces` names the concept of which this is the new version, taught beside `without(replaces)`. The same write of the
        manifest that adds the one takes out the other. The new version goes last, since its basis knows of all the others.
        """
        others = self if replaces is None else self.without(replaces)
        name = others.free_name(name)
        ranks = {layer: pair.up.shape[1] for layer, pair in trained.pairs.items()}
        if self.base is None or ranks != self.ranks(self.base.layers):
            raise SeqLoRAError(f"Concept '{name}' has other layers or ranks than library '{self.path.name}'; it was not filed.")
        number = max((record.id for record in self.concepts), default=0) + 1
        record = Record(
            number,
            name,
            trigger,
            class_word,
            concept_file(number, name),
            "",
            "",
            datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            request,
            list(trained.full_layers),
            dict(settings),
            dict(metrics or {}),
        )
        try:
            record = replace(record, moments_sha256=write_moments(self.inside(moments_file(number)), trained.moments))
            record = self._write_concept(record, to_native(trained.pairs), thumbnail)
        except SeqLoRAError:
            self._delete(record)  # there is no whole concept yet
            raise
        library = replace(self, concepts=(*others.concepts, record)).save()
        if replaces is not None:
            self._delete(self.find(replaces))
        return library

    def without(self, name: str) -> Library:
        """The same without one concept, as it would be; nothing is written."""
        gone = self.find(name)
        return replace(self, concepts=tuple(record for record in self.concepts if record is not gone))

    def remove(self, name: str) -> Library:
        """Takes a concept out and deletes its files; call inside `writing()`. The others stay as they are, to the bit."""
        library = self.without(name).save()
        self._delete(self.find(name))
        return library

    def rename(self, name: str, new: str) -> Library:
        """Calls a concept something else; call inside `writing()`.

        Its file is written anew, since the header repeats the manifest; its tensors stay as they are.
        """
        record = self.find(name)
        new = self.without(name).free_name(new)
        if new == name:
            return self
        _, tensors = self._read(record)
        picture = self.thumbnail(name)
        file = concept_file(record.id, new)
        if file == record.file:
            file = concept_file(record.id, f"{new} 2")
        renamed = self._write_concept(replace(record, name=new, file=file), tensors, picture)
        library = replace(self, concepts=tuple(renamed if one is record else one for one in self.concepts)).save()
        _unlink(self.inside(record.file))
        return library

    def free_name(self, name: str) -> str:
        """The checked name. Raises SeqLoRAError if a concept has it already, or one that looks the same."""
        name = checked_name(name, "concept name")
        if collision_key(name) in map(collision_key, self.names):
            raise SeqLoRAError(f"Library '{self.path.name}' has a concept '{name}' already; choose another name.")
        return name

    def _delete(self, record: Record) -> None:
        """After the manifest was written: what a crash or a refusal leaves here belongs to no concept any more."""
        files = [record.file] if re.fullmatch(r"concepts/[^/\\]+\.safetensors", record.file) else []
        for file in (*files, moments_file(record.id)):
            with suppress(SeqLoRAError):
                _unlink(self.inside(file))

    def _write_concept(self, record: Record, tensors: Mapping[str, Tensor], picture: str) -> Record:
        """The record with the hash of its file."""
        alone = replace(self, concepts=(replace(record, sha256=""),))
        family = self.base.family if self.base else "other"
        rank = str(max(self.ranks(self.base.layers if self.base else {}).values(), default=0))
        header = {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": f"{family}/lora",
            "modelspec.title": record.name,
            "modelspec.date": record.created,
            "modelspec.trigger_phrase": f"{record.trigger} {record.class_word}".strip(),
            "modelspec.implementation": "seqlora",
            "ss_network_module": "networks.lora",
            "ss_network_dim": rank,
            "ss_network_alpha": rank,
            "ss_output_name": record.name,
            "seqlora": alone.text(indent=None).decode(),
        }
        if picture:
            header[thumbnails.KEY] = picture
        return replace(record, sha256=write_tensors(self.inside(record.file), tensors, header))


def concept_file(number: int, name: str) -> str:
    return f"concepts/{number:04d}-{slug(name)}.safetensors"


def moments_file(number: int) -> str:
    return f"moments/{number:04d}.safetensors"


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


class LibraryLock:
    """The right to write to a library. It is held for the whole of a training: concept t must be orthogonal to 1 .. t-1.

        turn = LibraryLock(library.path)
        while not turn.acquire(timeout=0.5):
            ...  # tell that another training is at work; leave if the user cancels
        with turn as library:
            ...  # the library as it is now, with what the others taught meanwhile

    The system takes the right away from a process that dies.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = FileLock(str(path / LOCK), thread_local=False)  # a generator may be closed by another thread

    def acquire(self, timeout: float) -> bool:
        """Waits up to so many seconds; whether it is ours now. Raises SeqLoRAError where there is no folder, or no writing."""
        if not self.path.is_dir():  # the lock would make one
            raise SeqLoRAError(f"There is no library at {self.path}; create it first.")
        if not is_within(self.path / LOCK, self.path):
            raise SeqLoRAError(f"{self.path / LOCK} leads out of the library's folder; remove it.")
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            return False
        except OSError as error:
            raise SeqLoRAError(f"Could not write to {self.path} ({error.strerror}); {remedy(error)}.") from error
        return True

    @contextmanager
    def short(self) -> Iterator[None]:
        """For work that takes no time. Raises SeqLoRAError where a training does not let go within PATIENCE seconds."""
        if not self.acquire(timeout=PATIENCE):
            raise SeqLoRAError(
                f"A training is writing to library '{self.path.name}'; wait until it ends or cancel it, then try again."
            )
        try:
            yield
        finally:
            self._lock.release()

    def __enter__(self) -> Library:
        try:
            return Library.open(self.path)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def request_hash(*parts: Any) -> str:
    """A hash of everything that decides how a concept comes out."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
