"""safetensors files that are looked at before they are believed: bounded, ordinary files, never unpickled.

What a header says of its tensors is checked by safetensors itself: it refuses holes, overlaps, false shapes and sizes.
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import SeqLoRAError
from .atomic import RESTORE, write_bytes
from .bounded_json import parse_json

DTYPES = {
    **{"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}
MAX_HEADER = 4 << 20  # bytes; a concept of SDXL's 722 layers has 0.4 MB


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Writes a safetensors file; returns its sha256."""
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata or {}))
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole file. Raises SeqLoRAError unless it is an ordinary file of at most `limit` bytes."""
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise SeqLoRAError(f"{path} has {size} bytes, at most {limit} were expected", RESTORE)
            return file.read(size)
    except (OSError, ValueError) as error:
        if isinstance(error, SeqLoRAError):
            raise
        raise _unreadable(path, error) from error


def read_tensors(path: Path, limit: int, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    Raises SeqLoRAError for a file that has more than `limit` bytes, is not whole, or not what its header says; and where
    `sha256` is given, for any other file than that one.
    """
    data = read_bytes(path, limit)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise SeqLoRAError(f"{path} was changed since it was written", RESTORE)
    try:
        metadata = _metadata(data, len(data))  # first, since it bounds the header
        # In an order of their own, and as copies that lie as torch wants its memory: else sums over them would differ in the
        # last bit from one reading to the next.
        return {name: tensor.clone() for name, tensor in sorted(load(data).items())}, metadata
    # The last four are of torch, for shapes and dtypes that safetensors knows and it does not.
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def map_tensors(path: Path, limit: int, sha256: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_tensors`, but the tensors stay on disk: the system reads what is used and drops it again where memory is short.

    What is written into them stays in this process.
    """
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise SeqLoRAError(f"{path} has {size} bytes, at most {limit} were expected", RESTORE)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SeqLoRAError(f"{path} was changed since it was written", RESTORE)
        length = int.from_bytes(data[:8], "little")
        metadata = _metadata(data[: 8 + min(length, MAX_HEADER)], size)
        header = parse_json(data[8 : 8 + length])
        with torch.inference_mode(False):  # whoever asks first: others may teach with them
            return {
                name: _mapped(data, 8 + length, header[name]) for name in sorted(header) if name != "__metadata__"
            }, metadata
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        if isinstance(error, SeqLoRAError):
            raise
        raise _unreadable(path, error) from error


def _mapped(data: mmap.mmap | bytes, start: int, entry: Mapping[str, Any]) -> Tensor:
    """One tensor, from what the header says of it; the bytes follow the header at `start`. Raises ValueError and the like."""
    dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    count = math.prod(shape)
    if min([0, *shape]) < 0 or not 0 <= begin <= end <= len(data) - start or end - begin != count * dtype.itemsize:
        raise ValueError("a tensor that is not where it should be")
    if not count:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start + begin).reshape(shape)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says about itself; its tensors are neither read nor checked. Raises SeqLoRAError."""
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            return _metadata(file.read(min(size, 8 + MAX_HEADER)), size)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _opened(path: Path) -> io.BufferedReader:
    # A named pipe would wait for ever; O_NONBLOCK is nothing to a file.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("no ordinary file")
    return file


def _metadata(data: bytes, size: int) -> dict[str, str]:
    """From the start of a file of `size` bytes. Raises ValueError."""
    length = int.from_bytes(data[:8], "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise ValueError("no safetensors file, or not all of it")
    header = parse_json(data[8 : 8 + length])
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no texts")
    return metadata


def _unreadable(path: Path, error: Exception) -> SeqLoRAError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return SeqLoRAError(f"{path} cannot be read ({reason})", RESTORE)
