"""safetensors files that are looked at before they are believed: bounded, ordinary files, never unpickled."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import SeqLoRAError
from .atomic import RESTORE, write_bytes
from .bounded_json import parse_json

MAX_HEADER = 4 << 20  # bytes; a concept of SDXL's 722 layers has 0.4 MB
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Writes a safetensors file; returns its sha256."""
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata or {}))
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path, limit: int) -> bytearray:
    """A whole file. Raises SeqLoRAError unless it is an ordinary file of at most `limit` bytes."""
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise SeqLoRAError(f"{path} has {size} bytes, at most {limit} were expected", RESTORE)
            data = bytearray(size)
            return data if file.readinto(data) == size else bytearray()  # it shrank meanwhile
    except (OSError, ValueError) as error:
        if isinstance(error, SeqLoRAError):
            raise
        raise _unreadable(path, error) from error


def read_tensors(path: Path, limit_bytes: int, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    Raises SeqLoRAError for a file that is larger than `limit_bytes`, not whole, or not exactly what its
    header says; and where `sha256` is given, for any other file than that one.
    """
    data = read_bytes(path, limit_bytes)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise SeqLoRAError(f"{path} was changed since it was written", RESTORE)
    try:
        header = parse_header(data, len(data))
        raw = torch.frombuffer(data, dtype=torch.uint8)[header.start :]
        return {name: _view(raw, entry) for name, entry in header.tensors.items()}, header.metadata
    except ValueError as error:
        raise _unreadable(path, error) from error


def read_header(path: Path) -> Header:
    """What a safetensors file says about itself; its tensors are not read. Raises SeqLoRAError as `read_tensors` does."""
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            return parse_header(file.read(min(size, 8 + MAX_HEADER)), size)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _opened(path: Path) -> io.BufferedReader:
    # A named pipe would wait for ever; O_NONBLOCK is nothing to a file.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("no ordinary file")
    return file


def _unreadable(path: Path, error: Exception) -> SeqLoRAError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return SeqLoRAError(f"{path} cannot be read ({reason})", RESTORE)


@dataclass(frozen=True)
class Entry:
    """A tensor in a safetensors file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # bytes after the header
    end: int


@dataclass(frozen=True)
class Header:
    tensors: dict[str, Entry]
    metadata: dict[str, str]
    start: int  # of the tensors, in bytes from the start of the file


def parse_header(data: bytes | bytearray, size: int) -> Header:
    """The header at the start of `data`, checked against the size of the whole file. Raises ValueError."""
    length = int.from_bytes(data[:8], "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise ValueError("no safetensors file, or not all of it")
    found = parse_json(data[8 : 8 + length])
    if not isinstance(found, dict) or len(found) > MAX_TENSORS:
        raise ValueError("its header lists no tensors, or too many")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no texts")
    tensors = {name: _entry(name, entry) for name, entry in found.items()}
    place = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            raise ValueError(f"tensor {name} does not start where the one before it ends")
        place = entry.end
    if 8 + length + place != size:
        raise ValueError("its tensors do not fill the file")
    return Header(tensors, metadata, 8 + length)


def _entry(name: str, entry: Any) -> Entry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name[:100]} has no dtype, shape and place")
    shape, place = entry["shape"], entry["data_offsets"]
    if not (_whole_numbers(shape) and _whole_numbers(place) and len(shape) <= MAX_DIMENSIONS and len(place) == 2):
        raise ValueError(f"tensor {name[:100]} has no usable shape or place")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name[:100]} has an unknown dtype")
    dtype = DTYPES[entry["dtype"]]
    if place[1] - place[0] != prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name[:100]} has more or fewer bytes than its shape says")
    return Entry(dtype, tuple(shape), *place)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _view(raw: Tensor, entry: Entry) -> Tensor:
    part = raw[entry.begin : entry.end]
    if (raw.storage_offset() + entry.begin) % entry.dtype.itemsize:
        part = part.clone()
    return part.view(entry.dtype).reshape(entry.shape)
