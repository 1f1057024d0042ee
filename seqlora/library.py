"""A library on disk: an ordered set of concepts that were taught to be used together.

    library.json                     what it holds; written last, so it never names a file that is not whole
    concepts/0001-<slug>.safetensors ordinary LoRA files (B orthonormal, alpha = r)
    moments/base.safetensors, 0001.safetensors   second moments on generic captions and on each concept
    thumbnails/0001.webp

A `Library` is an immutable view of one state of the folder; operations that write return the next one.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from .adapter import TARGETS, Concept, Pair
from .errors import SeqLoRAError
from .files import MAX_HEADER, RESTORE, read_tensors, remedy, write_bytes, write_tensors
from .keys import from_native, to_native
from .moments import Moment, Moments
from .names import checked_name, slug
from .trainer import Trained, layer_rank

FORMAT = 1
MANIFEST = "library.json"
LOCK = ".lock"
PATIENCE = 5.0  # seconds that short work waits for a training
PRIOR = "moments/base.safetensors"
MAX_MANIFEST = 64 << 20
MAX_MOMENTS = 4 << 30
ORTHOGONALITY = 1e-3  # largest error of B'B = I that a file may have; fp16 files reach 2e-4


@dataclass(frozen=True)
class Base:
    """The model that a library belongs to."""

    layout: Mapping[str, Any]  # how its layers are named elsewhere, see keys.py; "family" is "unet", "sd3", "flux" or "other"
    layers: Mapping[str, Sequence[int]]  # name -> [m, n]
    fingerprint: str = ""  # of some of its weights; differs between fine-tunes of one family

    @property
    def family(self) -> str:
        return str(self.layout["family"])


@dataclass(frozen=True)
class Record:
    """A concept as the manifest lists it."""

    id: int
    name: str
    trigger: str
    class_word: str
    file: str
    sha256: str
    created: str
    request: str  # hash of everything that was asked for; the same request finds this concept again
    ranks: Mapping[str, int]
    full_layers: Sequence[str]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = (self.name, self.trigger, self.class_word, self.file, self.sha256)
        if not isinstance(self.id, int) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"concept {self.name}")


@dataclass(frozen=True)
class Library:
    path: Path
    rank: int
    capacity: int
    targets: str
    base: Base | None = None
    concepts: tuple[Record, ...] = ()
    digest: str = ""

    # -- opening and creating

    @classmethod
    def create(cls, path: Path, rank: int, capacity: int, targets: str) -> Library:
        """Makes an empty library, or opens the one that is there if it agrees."""
        checked_name(path.name, "library name")
        if rank < 1 or capacity < 1:
            raise SeqLoRAError(f"rank is {rank} and capacity is {capacity}; both must be at least 1.")
        if targets not in TARGETS:
            raise SeqLoRAError(f"targets is '{targets}', but must be one of: {', '.join(TARGETS)}.")
        if (path / MANIFEST).exists():
            library = cls.open(path)
            for what, wanted in (("rank", rank), ("capacity", capacity), ("targets", targets)):
                found = getattr(library, what)
                if found != wanted:
                    raise SeqLoRAError(
                        f"Library '{path.name}' exists with {what} {found}, not {wanted}; "
                        f"set {what} to {found} or choose another name."
                    )
            return library
        return cls(path, rank, capacity, targets)._write()

    @classmethod
    def open(cls, path: Path) -> Library:
        """Reads the manifest only. Raises SeqLoRAError where there is none or it is damaged."""
        try:
            if (path / MANIFEST).stat().st_size > MAX_MANIFEST:
                raise SeqLoRAError(f"{path / MANIFEST} is too large to be a library's manifest.")
            data = (path / MANIFEST).read_bytes()
        except OSError as error:
            raise SeqLoRAError(f"There is no library at {path} ({error.strerror}); create it first.") from error
        try:
            found = json.loads(data)
            if found["format"] != FORMAT:
                raise SeqLoRAError(
                    f"{path / MANIFEST} has format {found['format']}; this version reads {FORMAT}. Update the pack."
                )
            base = Base(**found["base"]) if found["base"] else None
            concepts = tuple(Record(**entry) for entry in found["concepts"])
            library = cls(path, int(found["rank"]), int(found["capacity"]), found["targets"], base, concepts, _digest(data))
            if min(library.rank, library.capacity) < 1 or library.targets not in TARGETS:
                raise ValueError(f"rank {library.rank}, capacity {library.capacity}, targets {library.targets}")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, SeqLoRAError):
                raise
            raise SeqLoRAError(f"{path / MANIFEST} is damaged ({error}); restore it from a copy.") from error
        return library

    def _write(self) -> Library:
        manifest = {
            "format": FORMAT,
            "rank": self.rank,
            "capacity": self.capacity,
            "targets": self.targets,
            "base": asdict(self.base) if self.base else None,
            "concepts": [asdict(record) for record in self.concepts],
        }
        data = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
        write_bytes(self.path / MANIFEST, data)
        return replace(self, digest=_digest(data))

    @contextmanager
    def writing(self) -> Iterator[Library]:
        """The library as it is now, for short work on it: one writer at a time.

        Raises SeqLoRAError where a training does not let go of it within PATIENCE seconds.
        """
        turn = Turn(self.path)
        if not turn.comes(within=PATIENCE):
            raise SeqLoRAError(
                f"A training is writing to library '{self.path.name}'; wait until it ends or cancel it, then try again."
            )
        with turn as library:
            yield library

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
        return {name: layer_rank(n, self.rank, self.capacity) for name, (_, n) in layers.items()}

    def load(self, name: str) -> dict[str, Pair]:
        """A concept's pairs, checked: hash, shapes, dtype, finite, orthonormal. Raises SeqLoRAError naming the file."""
        record = self.find(name)
        path = self._inside(record.file)
        advice = f"{RESTORE}, or remove concept '{name}'"
        tensors, _ = read_tensors(path, self._concept_bytes(), advice, record.sha256)
        try:
            concept = from_native(tensors)
        except SeqLoRAError as error:
            raise SeqLoRAError(f"{path} is no concept file: {error}") from error
        self._check(path, concept, record)
        return concept

    def _concept_bytes(self) -> int:
        """No concept file of this library is larger."""
        layers = self.base.layers if self.base else {}
        return MAX_HEADER + sum(4 * ((m + n) * layer_rank(n, self.rank, self.capacity) + 1) for m, n in layers.values())

    def _check(self, path: Path, concept: Concept, record: Record) -> None:
        layers = self.base.layers if self.base else {}
        for layer in record.ranks:
            if layer not in concept:
                raise SeqLoRAError(f"{path}: layer {layer} is missing; restore the file.")
        for layer, (A, B) in concept.items():
            if layer not in layers or [A.shape[0], B.shape[0]] != list(layers[layer]) or A.shape[1] != B.shape[1]:
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

    def _inside(self, relative: str) -> Path:
        path = (self.path / relative).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise SeqLoRAError(
                f"Library '{self.path.name}' names a file outside its folder ({relative}); it was tampered with."
            )
        return path

    def prior(self) -> Moments | None:
        """G, once it was measured."""
        path = self.path / PRIOR
        return _read_moments(path) if self.base and path.exists() else None  # without a base it is what a crash left

    def moments(self, name: str) -> Moments:
        return _read_moments(self.path / "moments" / f"{self.find(name).id:04d}.safetensors")

    def moments_sum(self) -> Moments | None:
        total: Moments | None = None
        for record in self.concepts:
            moments = self.moments(record.name)
            total = moments if total is None else total + moments
        return total

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
        if prior is not None and self.prior() is None:
            _write_moments(self.path / PRIOR, prior)
        return replace(self, base=base)._write() if self.base is None else self

    def add(
        self,
        name: str,
        trigger: str,
        class_word: str,
        trained: Trained,
        settings: Mapping[str, Any],
        request: str = "",
        metrics: Mapping[str, Any] | None = None,
        thumbnail: bytes | None = None,
    ) -> Library:
        """Files a taught concept; call inside `writing()`. Returns the library that has it."""
        name = self.free_name(name)
        number = max((record.id for record in self.concepts), default=0) + 1
        file = f"concepts/{number:04d}-{slug(name)}.safetensors"
        created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        ranks = {layer: pair.A.shape[1] for layer, pair in trained.pairs.items()}
        record = Record(
            number, name, trigger, class_word, file, "", created, request, ranks, trained.full_layers, settings, metrics or {}
        )
        _write_moments(self.path / "moments" / f"{number:04d}.safetensors", trained.moments)
        if thumbnail:
            write_bytes(self.path / "thumbnails" / f"{number:04d}.webp", thumbnail)
        sha256 = write_tensors(self.path / file, to_native(trained.pairs), self._header(record))
        return replace(self, concepts=(*self.concepts, replace(record, sha256=sha256)))._write()

    def free_name(self, name: str) -> str:
        """The checked name. Raises SeqLoRAError if a concept has it already."""
        name = checked_name(name, "concept name")
        if name.casefold() in (known.casefold() for known in self.names):
            raise SeqLoRAError(f"Library '{self.path.name}' has a concept '{name}' already; choose another name.")
        return name

    def _header(self, record: Record) -> dict[str, str]:
        family = self.base.family if self.base else "other"
        rank = str(max(record.ranks.values(), default=0))
        own = {key: getattr(record, key) for key in ("id", "name", "trigger", "class_word", "created")}
        return {
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
            "seqlora": json.dumps({"format": FORMAT, "library": self.path.name, **own, "settings": dict(record.settings)}),
        }


class Turn:
    """The right to write to a library. It is held for the whole of a training: concept t must be orthogonal to 1 .. t-1.

        turn = Turn(library.path)
        while not turn.comes(within=0.5):
            ...  # tell that another training is at work; leave if the user cancels
        with turn as library:
            ...  # the library as it is now, with what the others taught meanwhile

    The system takes the right away from a process that dies.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = FileLock(str(path / LOCK), thread_local=False)  # a generator may be closed by another thread

    def comes(self, within: float) -> bool:
        """Waits up to so many seconds; whether it is ours now. Raises SeqLoRAError where there is no library, or no writing."""
        Library.open(self.path)
        if (self.path / LOCK).is_symlink():
            raise SeqLoRAError(f"{self.path / LOCK} is a link; remove it.")
        try:
            self._lock.acquire(timeout=within)
        except Timeout:
            return False
        except OSError as error:
            raise SeqLoRAError(f"Could not write to {self.path} ({error.strerror}); {remedy(error)}.") from error
        return True

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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _write_moments(path: Path, moments: Moments) -> None:
    tensors: dict[str, Tensor] = {}
    for name, moment in moments.by_input.items():
        tensors[f"{name}.sketch"], tensors[f"{name}.diagonal"] = moment.sketch, moment.diagonal
    about = {"input_of": json.dumps(moments.input_of), "output_energy": json.dumps(moments.output_energy)}
    write_tensors(path, tensors, about)


def _read_moments(path: Path) -> Moments:
    tensors, about = read_tensors(path, MAX_MOMENTS)
    try:
        input_of = json.loads(about["input_of"])
        by_input = {
            name: Moment(tensors[f"{name}.sketch"], tensors[f"{name}.diagonal"]) for name in dict.fromkeys(input_of.values())
        }
        return Moments(by_input, input_of, json.loads(about["output_energy"]))
    except (KeyError, TypeError, ValueError) as error:
        raise SeqLoRAError(f"{path} cannot be read ({error}); {RESTORE}.") from error
