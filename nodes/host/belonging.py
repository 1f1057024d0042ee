"""Whether what is connected belongs together and can be taught through: one sentence instead of a crash inside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.patcher_extension
from torch import Tensor, nn

from ...seqlora.diffusion.belonging import OWN_TEXT, text_fits
from ...seqlora.errors import SeqLoRAError
from .forward import KEY

OWN_VAE = "connect the VAE that belongs to the model"


def check_latents_fit(latents: Tensor, picture: Tensor, latent_format: Any) -> None:
    """Raises SeqLoRAError where a picture's latents (1, c, ..., h, w) are not such as the model takes."""
    wanted = latent_format.latent_channels
    if latents.shape[1] != wanted:
        raise SeqLoRAError(f"The VAE makes latents of {latents.shape[1]} channels, but the model takes {wanted}", OWN_VAE)
    axes = latent_format.latent_dimensions
    if latents.ndim - 2 != axes:
        kinds = {2: "of pictures", 3: "of video"}
        made, taken = (kinds.get(count, f"with {count} axes") for count in (latents.ndim - 2, axes))
        raise SeqLoRAError(f"The VAE makes latents {made}, but the model takes those {taken}", OWN_VAE)
    step = latent_format.spacial_downscale_ratio
    sides = zip(latents.shape[-2:], picture.shape[:2], strict=True)
    if any(abs(side - pixels / step) > 1 for side, pixels in sides):  # a VAE may crop or fill up
        found = round(picture.shape[0] / latents.shape[-2])
        raise SeqLoRAError(f"The VAE makes a latent of {found} x {found} pixels, but the model takes {step} x {step}", OWN_VAE)


@contextmanager
def caption_fits(model: nn.Module, text: Mapping[str, Any]) -> Iterator[None]:
    """While open, a model that cannot take this text, an encoded caption as the host has it, raises SeqLoRAError."""
    tokens, pooled = text.get("cross_attn"), text.get("pooled_output")
    try:
        with text_fits(model, tokens, pooled):
            yield
    except (AttributeError, KeyError, TypeError) as error:
        if pooled is not None:
            raise
        raise SeqLoRAError("The text encoder gives no pooled text, which the model needs", OWN_TEXT) from error


def other_kind(config: Any, clip: Any) -> str:
    """A sentence on a text encoder that the host loaded for another kind of model than the one with this configuration, even
    though its width may fit, as umT5's does where T5 belongs; "" where it is this one's, or nothing is known.

    No more than a sentence: the host may load one and the same encoder under several types.
    """
    target = getattr(type(config), "clip_target", None)
    own = target(config) if target else None
    found, wanted = (type(getattr(clip, "tokenizer", None)).__module__, own.tokenizer.__module__ if own else "")
    if not wanted or found == wanted or not found.startswith("comfy."):
        return ""
    kinds = [module.rpartition(".")[2].removesuffix("_clip") for module in (found, wanted)]
    return (
        f"The text encoder was loaded for another kind of model ({kinds[0]}) than this one ({kinds[1]}): its words may mean "
        "nothing to the model even where their width fits. Choose the model's own type where it is loaded."
    )


def check_through(model: Any, clip: Any) -> None:
    """Raises SeqLoRAError for what runs beside the weights of the MODEL or CLIP: a training would not see it, or see it without
    knowing it when the same is asked for again."""
    if getattr(model, "wrappers", {}).get(comfy.patcher_extension.WrappersMP.APPLY_MODEL, {}).get(KEY):
        raise SeqLoRAError(
            "The model that is connected has concepts beside its weights, as quantised models and regions need it, and a "
            "training does not see them",
            "connect the model as it is before Apply Composed SeqLoRA or Concept Prompt",
        )
    for what, part in (("model", model), ("text encoder", getattr(clip, "patcher", None))):
        found = sorted(getattr(part, "injections", {}))
        if found:
            raise SeqLoRAError(
                f"The {what} that is connected has something put between its layers ({', '.join(found)}), which a training "
                "cannot tell from something else",
                "use Load LoRA, which changes the weights, in place of a bypass loader, or leave it out",
            )
    if getattr(getattr(clip, "patcher", None), "forced_hooks", None):
        raise SeqLoRAError(
            "The text encoder that is connected has hooks, which a training cannot tell from others",
            "connect it as it is before Set CLIP Hooks",
        )


def pieces_of(clip: Any, word: str) -> int:
    """How many tokens a text encoder of the host takes a word for, the most of several; 0 where its tokens are not numbers of a
    vocabulary. The demo model's are not: it gives any word one of its own."""
    if not type(getattr(clip, "tokenizer", None)).__module__.startswith("comfy."):
        return 0

    def numbers(text: str) -> dict[str, list[Any]]:
        tokens = clip.tokenize(text)
        return {name: [token[0] for chunk in chunks for token in chunk] for name, chunks in tokens.items()}

    around = numbers("")  # what is put before and behind a text, and what fills it up
    # What is no number is a vector, as an embedding's.
    return max(
        sum(not isinstance(number, int) or number not in around[name] for number in found)
        for name, found in numbers(word).items()
    )
