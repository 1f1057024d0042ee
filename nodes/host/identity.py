"""Which MODEL, CLIP and VAE it is, with everything that nodes upstream did to them: what a request's hash is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...seqlora.diffusion.fingerprint import plain_parts, some_values, weights_hash
from .own_words import own_words_hash


def parts_of(model: Any, clip: Any, vae: Any) -> dict[str, str]:
    """Each part that decides how a concept comes out, by a name that people know -> its hash."""
    how = (getattr(clip, "layer_idx", None), getattr(clip, "tokenizer_options", None))
    return {
        "model": weights_hash(_own_weights(model), _patches(model) + _replaced(model)),
        "sampling": _sampling(model),
        "text encoder": _weights(clip, "cond_stage_model", *how, _patches(clip), *own_words_hash(clip)),
        "VAE": _weights(vae, "first_stage_model"),
    }


def fingerprint(patcher: Any, samples: int = 8) -> str:
    """A hash of a few values of a few weights as they were before any patch, and of the patches."""
    return fingerprints(patcher, samples)[0]


def fingerprints(patcher: Any, samples: int = 8) -> tuple[str, str]:
    """Its `fingerprint`, and that of the same model without patches."""
    digest = hashlib.sha256()
    weights = list(_own_weights(patcher))
    for name, weight in weights[:: max(1, len(weights) // samples)]:
        digest.update(name.encode() + _few_values(weight))
    bare = digest.hexdigest()[:16]
    for part in _patch_bytes(patcher.patches, _few_values):
        digest.update(part)
    return digest.hexdigest()[:16], bare


def _weights(holder: Any, name: str, *more: Any) -> str:
    """A hash of the weights of a part of CLIP or VAE; other packs' need not have it."""
    module = getattr(holder, name, None)
    tensors = module.state_dict().items() if isinstance(module, nn.Module) else ()
    return weights_hash(tensors, f"{type(holder).__name__} {type(module).__name__} {more}")


def _own_weights(patcher: Any) -> Iterator[tuple[str, Tensor]]:
    """As they were before any patch."""
    for name, weight in sorted(patcher.model.diffusion_model.state_dict().items()):
        backup = patcher.backup.get(f"diffusion_model.{name}")
        yield name, backup.weight if backup else weight


def _patches(holder: Any) -> str:
    """A hash of what is patched onto a MODEL or CLIP, such as LoRAs; "" for nothing."""
    patches = getattr(getattr(holder, "patcher", holder), "patches", {})
    return hashlib.sha256(b"".join(_patch_bytes(patches, some_values))).hexdigest()[:16] if patches else ""


def _replaced(patcher: Any) -> str:
    """What nodes upstream put in the place of parts of the model, but for its sampling, which is told apart; "" for nothing."""
    said = []
    for name, part in sorted(patcher.object_patches.items()):
        tensors = part.state_dict().items() if isinstance(part, nn.Module) else ()
        plain = part if isinstance(part, (torch.dtype, int, float, str)) else type(part).__qualname__
        said += [f"{name} {weights_hash(tensors, str(plain))}"] if name != "model_sampling" else []
    return " ".join(said)


def _patch_bytes(patches: Any, values: Callable[[Tensor], bytes]) -> Iterator[bytes]:
    """What a hash of patches is made of, however deep they are nested (a merged model's are): which weights, all numbers, and
    some values of each tensor."""
    if isinstance(patches, Tensor):
        yield values(patches)
    elif isinstance(patches, Mapping):
        for name in sorted(patches):
            yield from _patch_bytes((name, patches[name]), values)
    elif isinstance(patches, (list, tuple)):
        for part in patches:
            yield from _patch_bytes(part, values)
    elif hasattr(patches, "weights"):  # an adapter
        yield type(patches).__name__.encode()
        yield from _patch_bytes(patches.weights, values)
    elif isinstance(patches, (int, float, str)):
        yield f"{patches} ".encode()


def _sampling(patcher: Any) -> str:
    """A hash of how noise levels and predictions are meant, which nodes upstream can change."""
    sampling = patcher.get_model_object("model_sampling")
    kinds = [kind.__name__ for kind in type(sampling).__mro__]
    numbers = {name: value for name, value in vars(sampling).items() if isinstance(value, (int, float, str, bool))}
    return weights_hash(sorted(sampling.named_buffers()), f"{kinds} {sorted(numbers.items())}")


def _few_values(weight: Tensor) -> bytes:
    parts = [part for part in plain_parts(weight) if not part.is_meta]
    return b"".join(part.flatten()[:16].float().cpu().half().numpy().tobytes() for part in parts)
