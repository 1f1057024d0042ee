"""What a library holds, for reading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import SeqLoRAError, remedied
from ..io.atomic import RESTORE, is_within
from ..io.names import checked_name, collision_key, slug
from ..io.safetensors_file import MAX_HEADER, map_tensors, read_metadata, read_tensors
from ..lora.compose import compose
from ..lora.formats import from_native
from ..lora.ranks import layer_rank
from ..lora.types import Concept, LoRAPair, Triggers, Vectors
from ..lora.vectors import KEY, unpack
from ..method.moments import Moments
from . import loaded, thumbnails
from .manifest import Base, Manifest, Record
from .moments_file import read_moments

PRIOR = "moments/base.safetensors"
ORTHOGONALITY = 1e-3  # largest error of B'B = I that a file may have; fp16 files reach 2e-4

V = TypeVar("V", bound="LibraryView")


@dataclass(frozen=True)
class LibraryView:
    """One state of a library's folder."""

    path: Path
    manifest: Manifest
    digest: str = ""  # of the manifest as it lies there

    def having(self: V, **changes: Any) -> V:
        """The same with another manifest, as it would be; nothing is written."""
        return replace(self, manifest=replace(self.manifest, **changes))

    def without(self: V, name: str) -> V:
        """As it would be without one concept; nothing is written."""
        gone = self.find(name)
        return self.having(concepts=tuple(record for record in self.concepts if record is not gone))

    def free_name(self, name: str) -> str:
        """The checked name. Raises SeqLoRAError if a concept has it already, or one that looks the same."""
        name = checked_name(name, "concept name")
        if collision_key(name) in map(collision_key, self.names):
            raise SeqLoRAError(f"Library '{self.path.name}' has a concept '{name}' already", "choose another name")
        return name

    # -- what it holds

    @property
    def names(self) -> list[str]:
        return [record.name for record in self.concepts]

    @property
    def is_empty(self) -> bool:
        """Whether there is no concept, nor a file that a repair could take for one."""
        return not self.concepts and not any((self.path / "concepts").glob("*.safetensors"))

    def known_as(self, name: str) -> str:
        """As the library spells it, where case, composed letters or spaces around it are all that differs, by which no two
        of its concepts differ only; else as it was given."""
        return next((known for known in self.names if collision_key(known) == collision_key(name.strip())), name.strip())

    def find(self, name: str) -> Record:
        for record in self.concepts:
            if record.name == name:
                return record
        raise SeqLoRAError(
            f"Library '{self.path.name}' has no concept '{name}'", f"it has: {', '.join(self.names) or 'none yet'}"
        )

    @property
    def rank(self) -> int:
        return self.manifest.rank

    @property
    def capacity(self) -> int:
        return self.manifest.capacity

    @property
    def targets(self) -> str:
        return self.manifest.targets

    @property
    def base(self) -> Base | None:
        return self.manifest.base

    @property
    def layers(self) -> Mapping[str, Sequence[int]]:
        """Name -> [m, n]; none before the first concept."""
        return self.manifest.base.layers if self.manifest.base else {}

    @property
    def concepts(self) -> tuple[Record, ...]:
        return self.manifest.concepts

    def ranks(self, layers: Mapping[str, Sequence[int]]) -> dict[str, int]:
        return {name: self._rank(n) for name, (_, n) in layers.items()}

    def load(self, name: str) -> dict[str, LoRAPair]:
        """A concept's pairs, checked: hash, shapes, dtype, finite, orthonormal. Raises SeqLoRAError naming the file.

        They stay on disk until they are used, and a file that is as it was is not checked twice.
        """
        record = self.find(name)
        path = self.inside(record.file)
        held = loaded.get(path, record.sha256, self.rank, self.capacity, self.layers)
        if held is not None:
            return held
        with remedied(f"{RESTORE}, or remove concept '{record.name}'"):
            tensors, _ = map_tensors(path, self.concept_limit(), record.sha256)
        try:
            concept = from_native(tensors)
        except SeqLoRAError as error:
            raise SeqLoRAError(f"{path} is no concept file: {error.problem}", error.remedy) from error
        self._check(path, concept)
        loaded.keep(concept, path, record.sha256, self.rank, self.capacity, self.layers)
        return concept

    def tensors(self, record: Record) -> dict[str, Tensor]:
        """What is in a concept's file, by hash."""
        path = self.inside(record.file)
        with remedied(f"{RESTORE}, or remove concept '{record.name}'"):
            return read_tensors(path, self.concept_limit(), record.sha256)[0]

    def concept_limit(self) -> int:
        """No concept file of this library has more bytes."""
        return MAX_HEADER + sum(4 * ((m + n) * self._rank(n) + 1) for m, n in self.layers.values())

    def _rank(self, width: int) -> int:
        return layer_rank(width, self.rank, self.capacity)

    def _check(self, path: Path, concept: Concept) -> None:
        for layer in self.layers:
            if layer not in concept:
                raise SeqLoRAError(f"{path}: layer {layer} is missing", "restore the file")
        for layer, (A, B) in concept.items():
            m, n = self.layers.get(layer, (0, 0))
            if (A.shape, B.shape) != ((m, self._rank(n)), (n, self._rank(n))):
                raise SeqLoRAError(f"{path}: layer {layer} does not fit this library's model", "restore the file")
            if A.dtype not in (torch.float32, torch.float16, torch.bfloat16) or B.dtype != A.dtype:
                raise SeqLoRAError(f"{path}: layer {layer} has dtype {A.dtype}", "it must be float32, float16 or bfloat16")
            if not (A.isfinite().all() and B.isfinite().all()):
                raise SeqLoRAError(f"{path}: layer {layer} holds values that are not numbers", "restore the file")
            error = float((B.float().mT @ B.float() - torch.eye(B.shape[1])).abs().max())
            if error > ORTHOGONALITY:
                raise SeqLoRAError(
                    f"{path}: the basis of layer {layer} is not orthonormal (error {error:.1e})", "restore the file"
                )

    def inside(self, relative: str) -> Path:
        """A file of this library. Raises SeqLoRAError where the name, or a link, leads out of its folder."""
        return inside(self.path, relative)

    def prior(self, on_disk: bool = False) -> Moments | None:
        """G, once it was measured; with `on_disk` it is read when it is used."""
        if not self.manifest.prior_sha256:
            return None
        path = self.inside(PRIOR)
        with remedied(f"{RESTORE}, or run: seqlora repair"):
            return read_moments(path, self.layers, self.manifest.prior_sha256, felt=True, on_disk=on_disk)

    def moments(self, name: str, on_disk: bool = False) -> Moments:
        """C of a concept; with `on_disk` they are read when they are used."""
        record = self.find(name)
        path = self.inside(moments_file(record.id))
        with remedied(f"{RESTORE}, or remove concept '{name}'"):
            return read_moments(path, self.layers, record.moments_sha256, on_disk=on_disk)

    def moments_sum(self) -> Moments | None:
        total: Moments | None = None
        for record in self.concepts:
            moments = self.moments(record.name)
            total = moments if total is None else total + moments
        return total

    def thumbnail(self, name: str) -> str:
        """A small picture of the concept as a data URI, or "" where its file has none that can be used."""
        uri = read_metadata(self.inside(self.find(name).file)).get(thumbnails.KEY, "")
        with suppress(ValueError):
            thumbnails.decode(uri)
            return uri
        return ""

    def vectors(self, name: str) -> Vectors:
        """What stands in the place of a concept's trigger, encoder -> (k, width); nothing where it learned none."""
        record = self.find(name)
        if not record.settings.get("trigger_vectors"):
            return {}
        path = self.inside(record.file)
        try:
            return unpack(read_metadata(path).get(KEY, ""))
        except ValueError as error:
            raise SeqLoRAError(f"{path}: the trigger's vectors cannot be read ({error})", "restore the file") from error

    def triggers(self, names: Iterable[str]) -> Triggers:
        """Those of several concepts, by the triggers that they stand for."""
        found = {self.find(name).trigger: self.vectors(name) for name in names}
        return {trigger: vectors for trigger, vectors in found.items() if vectors}

    def compose(self, selection: Mapping[str, float], strength: float = 1.0) -> dict[str, LoRAPair]:
        """The sum of the selected concepts, each by its strength, as one pair a layer. Reads only their files."""
        return compose([(self.load(name), strength * own) for name, own in selection.items()])

    def check_base(self, layers: Mapping[str, Sequence[int]]) -> None:
        """Raises SeqLoRAError naming the first of this library's layers that a model lacks or has in another size.

        `layers` are all linear layers of the model. It may have more: which ones are taught is the library's to say.
        """
        if self.base is None:
            return
        for name, ours in self.layers.items():
            theirs = layers.get(name)
            if theirs is None or list(ours) != list(theirs):
                found = f"is {theirs[0]} x {theirs[1]}" if theirs else "is missing"
                raise SeqLoRAError(
                    f"Library '{self.path.name}' belongs to another model ({self.base.family}): "
                    f"layer {name} {found} here, {ours[0]} x {ours[1]} there",
                    "choose another library or model",
                )


def inside(folder: Path, relative: str) -> Path:
    """A file of a library. Raises SeqLoRAError where the name, or a link, leads out of its folder."""
    path = folder / relative
    if not is_within(path, folder):
        raise SeqLoRAError(
            f"Library '{folder.name}' names a file outside its folder ({relative})", f"it was tampered with, {RESTORE}"
        )
    return path


def concept_file(number: int, name: str) -> str:
    return f"concepts/{number:04d}-{slug(name)}.safetensors"


def moments_file(number: int) -> str:
    return f"moments/{number:04d}.safetensors"


def digest_of(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
