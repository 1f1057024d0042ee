"""G and Gamma, what the base model sees and feels of everything else: measured once for each library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torch import nn

from ..diffusion.model import Model
from ..errors import SeqLoRAError
from ..library.moments_file import header_of, moments_from, tensors_of
from ..library.store import Library, request_hash
from ..lora.targets import layer_shapes
from ..method.moments import Moments
from .bound_file import read_bound, write_bound
from .checkpoint import FOLDER
from .measure import measure_prior
from .progress import TrainingSteps


def prior_file(library: Library) -> Path:
    """Where the prior waits for the first concept to be filed: it belongs to a model, which the library has not got before."""
    return library.path / FOLDER / "prior.safetensors"


def measured_prior(
    library: Library, model: Model, layers: Mapping[str, nn.Module], shape: Sequence[int]
) -> TrainingSteps[Moments]:
    """The prior, or what a training that was cancelled found it to be. `shape` is that of the latents."""
    file = prior_file(library)
    binding = request_hash(model.fingerprint, model.parts, layer_shapes(layers), model.generic_captions, list(shape))
    with suppress(SeqLoRAError, KeyError, TypeError, ValueError):
        header, tensors = read_bound(file, binding)
        return moments_from(tensors, header)
    uncond, *generic = model.encode_captions(["", *model.generic_captions])
    prior = yield from measure_prior(model.denoiser, layers, shape, generic, uncond)
    with suppress(SeqLoRAError):  # a disk that is full will tell when it matters
        write_bound(file, binding, header_of(prior), tensors_of(prior))
    return prior
