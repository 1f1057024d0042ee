"""Composed concepts as one ordinary LoRA file, in the names of whoever is to load it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SeqLoRAError
from ..io.safetensors_file import write_tensors
from ..lora import modelspec
from ..lora.formats import ALPHA, to_diffusers, to_kohya, to_native
from ..lora.types import LoRAPair
from ..lora.vectors import to_embedding
from .store import Library

FORMATS: dict[str, Callable[[dict[str, LoRAPair], Mapping[str, Any]], dict[str, Tensor]]] = {
    "comfyui": lambda concept, layout: to_native(concept),
    "kohya": to_kohya,
    "diffusers": to_diffusers,
}
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def export_composed(
    library: Library, selection: Mapping[str, float], path: Path, format: str = "comfyui", dtype: str = "fp16"
) -> Path:
    """Writes the sum of the selected concepts and returns the path. `format` is one of FORMATS, `dtype` one of DTYPES.

    Raises SeqLoRAError where nothing is selected, the format has no names for this model, or fp16 cannot hold a value.
    """
    for what, given, known in (("format", format, FORMATS), ("dtype", dtype, DTYPES)):
        if given not in known:
            raise SeqLoRAError(f"{what} is '{given}', but must be one of: {', '.join(known)}")
    if not selection or library.base is None:
        raise SeqLoRAError(f"No concepts of library '{library.path.name}' are selected", "name at least one, or '*' for all")
    composed = library.compose(selection)
    tensors = {
        name: tensor if name.endswith(ALPHA) else tensor.to(DTYPES[dtype])
        for name, tensor in FORMATS[format](composed, library.base.layout).items()
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise SeqLoRAError(f"{name} has values too large for {dtype}", "export as fp32 or lower the strengths")
    write_tensors(path, tensors, metadata(library, selection, composed, path.stem))
    return path


def export_embeddings(library: Library, names: Iterable[str], folder: Path) -> list[Path]:
    """Writes what stands for these concepts' triggers, where they have learned vectors: ordinary textual-inversion embeddings,
    fp32, called as the concepts' files are. Returns the paths; nothing is written for a concept without."""
    written = []
    for name in names:
        if vectors := library.vectors(name):
            record = library.find(name)
            path = folder / Path(record.file).name
            write_tensors(path, to_embedding(vectors), {"modelspec.title": name, "modelspec.trigger_phrase": record.trigger})
            written.append(path)
    return written


def metadata(library: Library, selection: Mapping[str, float], composed: Mapping[str, LoRAPair], title: str) -> dict[str, str]:
    """What LoRA managers and web interfaces read, and our own: which concepts of which library, how strong."""
    records = [library.find(name) for name in selection]
    concepts = [
        {"name": r.name, "trigger": r.trigger, "class_word": r.class_word, "strength": selection[r.name], "sha256": r.sha256}
        for r in records
    ]
    header = modelspec.header(
        modelspec.architecture(library.base.family if library.base else "other", library.layers),
        title=title,
        subjects=[record.subject for record in records],
        rank=max(pair.up.shape[1] for pair in composed.values()),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    return header | {"seqlora": json.dumps({"library": library.path.name, "concepts": concepts}, ensure_ascii=False)}
