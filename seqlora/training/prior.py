"""G and Gamma, what the base model sees and feels of everything else: measured once, and kept for all libraries of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torch import nn

from ..diffusion.model import Model
from ..errors import SeqLoRAError
from ..library.moments_file import header_of, moments_of, tensors_of
from ..library.store import Library, request_hash
from ..lora.targets import layer_shapes
from ..method.moments import Moments
from .bound_file import read_bound, write_bound
from .measure import measure_prior
from .progress import TrainingSteps

FOLDER = ".seqlora"  # beside the libraries
KEPT = 4  # base models; of SDXL's a file has half a GB


def prior_file(library: Library, model: Model, layers: Mapping[str, nn.Module], shape: Sequence[int]) -> tuple[Path, str]:
    """Where the moments of one base model, at one size of pictures, lie for all libraries of this folder, and what binds the
    file to them."""
    binding = request_hash(model.fingerprint, model.parts, layer_shapes(layers), model.generic_captions, list(shape))
    return library.path.resolve().parent / FOLDER / f"prior-{binding[:16]}.safetensors", binding


def known_prior(library: Library, model: Model, layers: Mapping[str, nn.Module], shape: Sequence[int]) -> Moments | None:
    """As a training beside this library has measured it."""
    file, binding = prior_file(library, model, layers, shape)
    with suppress(SeqLoRAError, KeyError, TypeError, ValueError):
        header, tensors = read_bound(file, binding)
        prior = moments_of(tensors, header, layer_shapes(layers), felt=True)  # checked: a file can be forged
        with suppress(OSError):
            file.touch()  # the last one used goes last
        return prior
    return None


def measured_prior(
    library: Library, model: Model, layers: Mapping[str, nn.Module], shape: Sequence[int]
) -> TrainingSteps[Moments]:
    """The prior of a base model, measured unless a training beside this library has done so. `shape` is that of the latents."""
    known = known_prior(library, model, layers, shape)
    if known is not None:
        return known
    file, binding = prior_file(library, model, layers, shape)
    uncond, *generic = model.encode_captions(["", *model.generic_captions])
    prior = yield from measure_prior(model.denoiser, layers, shape, generic, uncond)
    with suppress(SeqLoRAError, OSError):  # a disk that is full will tell when it matters
        write_bound(file, binding, header_of(prior), tensors_of(prior))
        kept = sorted(file.parent.glob("prior-*.safetensors"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-KEPT]:
            old.unlink()
    return prior
