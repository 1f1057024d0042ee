"""Tensors on disk that are good for one thing only: bound to what they depend on, with a digest of their contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SeqLoRAError, remedied
from ..io.bounded_json import parse_json
from ..io.safetensors_file import read_tensors, write_tensors

FORMAT = 1
MAX_BYTES = 32 << 30
ANEW = "it was set aside and the training starts anew"


def write_bound(path: Path, binding: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises SeqLoRAError where the disk refuses."""
    text = json.dumps({**header, "binding": binding, "format": FORMAT})
    write_tensors(path, tensors, {"seqlora": text, "digest": _digest(text, tensors)})


def read_bound(path: Path, binding: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Raises SeqLoRAError for a file that is damaged, of another version, or bound to something else."""
    with remedied(ANEW):
        tensors, metadata = read_tensors(path, MAX_BYTES)
    text = metadata.get("seqlora", "")
    if metadata.get("digest") != _digest(text, tensors):
        raise SeqLoRAError(f"{path} is damaged", ANEW)
    try:
        header = parse_json(text)
        found = header["format"], header["binding"]
    except (KeyError, TypeError, ValueError) as error:  # a digest can be forged
        raise SeqLoRAError(f"{path} is damaged ({error})", ANEW) from error
    if found[0] != FORMAT:
        raise SeqLoRAError(f"{path} was written by another version", ANEW)
    if found[1] != binding:
        raise SeqLoRAError(f"{path} is of another state of the library", ANEW)
    return header, tensors


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
