"""Second moments as a safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .errors import SeqLoRAError
from .files import MAX_HEADER, RESTORE, parse_json, read_tensors, write_tensors
from .moments import EXACT_WIDTH, SKETCH_RANK, Moment, Moments


def write_moments(path: Path, moments: Moments) -> str:
    """Returns the file's sha256."""
    tensors: dict[str, Tensor] = {}
    for name, moment in moments.by_input.items():
        tensors[f"{name}.sketch"], tensors[f"{name}.diagonal"] = moment.sketch, moment.diagonal
    about = {"input_of": json.dumps(moments.input_of), "output_energy": json.dumps(moments.output_energy)}
    return write_tensors(path, tensors, about)


def read_moments(path: Path, layers: Mapping[str, Sequence[int]], sha256: str, advice: str = RESTORE) -> Moments:
    """Raises SeqLoRAError, with the advice, unless this is that file and has a moment of the right size for each layer."""
    limit = MAX_HEADER + sum(4 * n * (_columns(n) + 1) for _, n in layers.values())
    tensors, about = read_tensors(path, limit, advice, sha256)
    try:
        input_of, energy = (parse_json(about[key]) for key in ("input_of", "output_energy"))
        by_input = {}
        for layer, (_, n) in layers.items():
            name = input_of[layer]
            by_input[name] = Moment(_moment(tensors[f"{name}.sketch"], n, _columns(n)), _moment(tensors[f"{name}.diagonal"], n))
            if not 0 <= float(energy[layer]) < math.inf:
                raise ValueError(f"energy of layer {layer}")
        return Moments(by_input, {name: input_of[name] for name in layers}, {name: float(energy[name]) for name in layers})
    except (KeyError, TypeError, ValueError) as error:
        raise SeqLoRAError(f"{path} holds no moments of this library's model ({error}); {advice}.") from error


def _columns(width: int) -> int:
    return width if width <= EXACT_WIDTH else SKETCH_RANK


def _moment(tensor: Tensor, *shape: int) -> Tensor:
    if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
        raise ValueError(f"a {tuple(tensor.shape)} of {tensor.dtype}, or what is no number")
    return tensor
