"""Second moments as a safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SeqLoRAError
from ..io.atomic import RESTORE
from ..io.bounded_json import parse_json
from ..io.safetensors_file import MAX_HEADER, map_tensors, read_tensors, write_tensors
from ..method.moments import EXACT_WIDTH, SKETCH_RANK, Moment, Moments

FELT = ".felt"  # after the layer's name, on disk: Gamma of that layer


def tensors_of(moments: Moments) -> dict[str, Tensor]:
    """By name: `<input>.sketch`, `<layer>.felt.sketch` and so on."""
    tensors: dict[str, Tensor] = {}
    curvatures = {f"{layer}{FELT}": gamma for layer, gamma in moments.output_curvature.items()}
    for name, moment in (moments.by_input | curvatures).items():
        tensors[f"{name}.sketch"], tensors[f"{name}.diagonal"] = moment.sketch, moment.diagonal
    return tensors


def header_of(moments: Moments) -> dict[str, Any]:
    """What else JSON must hold for `moments_from`."""
    return {"felt": list(moments.output_curvature), "input_of": moments.input_of, "output_energy": moments.output_energy}


def moments_from(tensors: dict[str, Tensor], header: Mapping[str, Any]) -> Moments:
    """Takes what `tensors_of` named out of `tensors`. Raises KeyError, TypeError or ValueError."""

    def take(name: str) -> Moment:
        return Moment(tensors.pop(f"{name}.sketch"), tensors.pop(f"{name}.diagonal"))

    by_input = {name: take(name) for name in dict.fromkeys(header["input_of"].values())}
    gammas = {layer: take(f"{layer}{FELT}") for layer in header["felt"]}
    return Moments(by_input, header["input_of"], header["output_energy"], gammas)


def write_moments(path: Path, moments: Moments) -> str:
    """Returns the file's sha256."""
    about = {"input_of": json.dumps(moments.input_of), "output_energy": json.dumps(moments.output_energy)}
    return write_tensors(path, tensors_of(moments), about)


def read_moments(
    path: Path, layers: Mapping[str, Sequence[int]], sha256: str, felt: bool = False, on_disk: bool = False
) -> Moments:
    """With `felt`, also what the output feels of each layer, as the base model's own moments have it.

    Raises SeqLoRAError unless this is that file and has a moment of the right size for each layer.
    """
    limit = MAX_HEADER + sum(4 * side * (_columns(side) + 1) for shape in layers.values() for side in shape)
    tensors, about = (map_tensors if on_disk else read_tensors)(path, limit, sha256)
    try:
        return moments_of(tensors, {key: parse_json(about[key]) for key in ("input_of", "output_energy")}, layers, felt)
    except (KeyError, TypeError, ValueError) as error:
        raise SeqLoRAError(f"{path} holds no moments of this library's model ({error})", RESTORE) from error


def moments_of(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], layers: Mapping[str, Sequence[int]], felt: bool
) -> Moments:
    """Of these layers, from what `tensors_of` named and `header_of` said. Raises KeyError, TypeError or ValueError where a
    moment is missing, of another size, or no numbers."""
    input_of, energy = header["input_of"], header["output_energy"]
    by_input = {}
    for layer, (_, n) in layers.items():
        name = input_of[layer]
        by_input[name] = _moment(tensors, name, n)
        if not 0 <= float(energy[layer]) < math.inf:
            raise ValueError(f"energy of layer {layer}")
    gammas = {layer: _moment(tensors, f"{layer}{FELT}", m) for layer, (m, _) in layers.items()} if felt else {}
    inputs, energies = {name: input_of[name] for name in layers}, {name: float(energy[name]) for name in layers}
    return Moments(by_input, inputs, energies, gammas)


def _columns(width: int) -> int:
    return width if width <= EXACT_WIDTH else SKETCH_RANK


def _moment(tensors: Mapping[str, Tensor], name: str, width: int) -> Moment:
    sketch, diagonal = tensors[f"{name}.sketch"], tensors[f"{name}.diagonal"]
    return Moment(_checked(sketch, width, _columns(width)), _checked(diagonal, width))


def _checked(tensor: Tensor, *shape: int) -> Tensor:
    if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
        raise ValueError(f"a {tuple(tensor.shape)} of {tensor.dtype}, or what is no number")
    return tensor
