"""Changing a library. The manifest is written last: what a crash leaves before belongs to no concept, and files are deleted
only after the manifest was written without them."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from ..errors import SeqLoRAError
from ..io.atomic import write_bytes
from ..io.safetensors_file import write_tensors
from ..lora import modelspec
from ..lora.formats import to_native
from ..lora.types import Vectors
from ..lora.vectors import KEY, pack
from ..method.moments import Moments
from ..method.trained import TrainedConcept
from . import loaded, thumbnails
from .manifest import Base, Record
from .moments_file import write_moments
from .view import PRIOR, LibraryView, concept_file, digest_of, moments_file

MANIFEST = "library.json"
V = TypeVar("V", bound=LibraryView)


class LibraryWriter(Generic[V]):
    """What alone can change a library; see `Library.writing`. Every change returns the library's next state."""

    def __init__(self, library: V):
        self.library = library

    def save(self, **changes: Any) -> V:
        """Writes the manifest with these fields changed."""
        library = self.library.having(**changes)
        data = library.manifest.to_bytes()
        write_bytes(library.path / MANIFEST, data)
        self.library = replace(library, digest=digest_of(data))
        return self.library

    def start_over(self) -> None:
        """The folder was deleted under us: what was listed is not there any more."""
        self.library = self.library.having(base=None, prior_sha256="", concepts=())

    def bind(self, base: Base, prior: Moments | None) -> V:
        """Binds a new library to its model and files the model's own moments."""
        changes: dict[str, Any] = {} if self.library.base else {"base": base}
        if prior is not None and not self.library.manifest.prior_sha256:
            changes["prior_sha256"] = write_moments(self.library.inside(PRIOR), prior)
        return self.save(**changes) if changes else self.library

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
    ) -> V:
        """Files a taught concept as the last one.

        `replaces` names the concept of which this is the new version, taught beside `without(replaces)`. The same write of the
        manifest that adds the one takes out the other. The new version goes last, since its basis knows of all the others.
        """
        library = self.library
        others = library if replaces is None else library.without(replaces)
        name = others.free_name(name)
        ranks = {layer: pair.up.shape[1] for layer, pair in trained.pairs.items()}
        if library.base is None or ranks != library.ranks(library.layers):
            raise SeqLoRAError(
                f"Concept '{name}' has other layers or ranks than library '{library.path.name}'", "it was not filed"
            )
        number = max((record.id for record in library.concepts), default=0) + 1
        record = Record(
            id=number,
            name=name,
            trigger=trigger,
            class_word=class_word,
            file=concept_file(number, name),
            sha256="",  # of what is not written yet
            moments_sha256="",
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            request=request,
            full_layers=list(trained.full_layers),
            settings=dict(settings),
            metrics=dict(metrics or {}),
        )
        try:
            record = replace(record, moments_sha256=write_moments(library.inside(moments_file(number)), trained.moments))
            record = self._write_concept(record, to_native(trained.pairs), thumbnail, trained.vectors)
        except SeqLoRAError:
            self._delete(record)  # there is no whole concept yet
            raise
        self.save(concepts=(*others.concepts, record))
        if replaces is not None:
            self._delete(library.find(replaces))
        return self.library

    def remove(self, name: str) -> V:
        """Takes a concept out and deletes its files. The others stay as they are, to the bit."""
        gone = self.library.find(name)
        self.save(concepts=self.library.without(name).concepts)
        self._delete(gone)
        return self.library

    def rename(self, name: str, new: str) -> V:
        """Calls a concept something else.

        Its file is written anew, since the header repeats the manifest; its tensors stay as they are.
        """
        library, record = self.library, self.library.find(name)
        new = library.without(name).free_name(new)
        if new == name:
            return library
        tensors = library.tensors(record)
        picture = library.thumbnail(name)
        file = concept_file(record.id, new)
        if file == record.file:
            file = concept_file(record.id, f"{new} 2")
        renamed = self._write_concept(replace(record, name=new, file=file), tensors, picture, library.vectors(name))
        self.save(concepts=tuple(renamed if one is record else one for one in library.concepts))
        _unlink(library.inside(record.file))
        return self.library

    def _delete(self, record: Record) -> None:
        """After the manifest was written: what a crash or a refusal leaves here belongs to no concept any more."""
        files = [record.file] if re.fullmatch(r"concepts/[^/\\]+\.safetensors", record.file) else []
        for file in (*files, moments_file(record.id)):
            with suppress(SeqLoRAError):
                _unlink(self.library.inside(file))

    def _write_concept(self, record: Record, tensors: Mapping[str, Tensor], picture: str, vectors: Vectors) -> Record:
        """The record with the hash of its file."""
        library = self.library
        alone = library.having(concepts=(replace(record, sha256=""),))
        header = modelspec.header(
            modelspec.architecture(library.base.family if library.base else "other", library.layers),
            title=record.name,
            subjects=[record.subject],
            rank=max(library.ranks(library.layers).values(), default=0),
            date=record.created,
        )
        header["seqlora"] = alone.manifest.to_bytes(indent=None).decode()
        if picture:
            header[thumbnails.KEY] = picture
        if vectors:
            header[KEY] = pack(vectors)
        return replace(record, sha256=write_tensors(library.inside(record.file), tensors, header))


def _unlink(path: Path) -> None:
    loaded.forget(path)
    with suppress(OSError):
        path.unlink(missing_ok=True)
