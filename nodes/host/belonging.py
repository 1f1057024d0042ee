"""Whether the text encoder and the VAE that are connected belong to the model: one sentence instead of a crash inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ...seqlora.errors import SeqLoRAError
from ...seqlora.lora.targets import is_linear

OWN_VAE = "connect the VAE that belongs to the model"
OWN_TEXT = "connect the text encoder that belongs to the model"


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
def text_fits(model: nn.Module, text: Mapping[str, Any]) -> Iterator[None]:
    """While open, a layer that is handed text of another width than it takes says so, whatever model it is in.

    `text` is an encoded caption as the host has it. Raises SeqLoRAError.
    """
    tokens, pooled = text.get("cross_attn"), text.get("pooled_output")

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        found, wanted = (args[0].shape[-1] if args and isinstance(args[0], Tensor) else 0), int(module.in_features)  # type: ignore[arg-type]
        if not found or found == wanted:
            return
        if tokens is not None and found == tokens.shape[-1]:
            raise SeqLoRAError(f"The text encoder's words are {found} wide, but the model takes {wanted}", OWN_TEXT)
        if pooled is not None and found >= pooled.shape[-1]:  # alone, or beside the picture's size
            width = pooled.shape[-1]
            raise SeqLoRAError(
                f"The text encoder's pooled text is {width} wide, but the model takes {width + wanted - found}", OWN_TEXT
            )

    with ExitStack() as undo:
        for module in filter(is_linear, model.modules()):
            undo.callback(module.register_forward_pre_hook(look).remove)
        try:
            yield
        except (AttributeError, KeyError, TypeError) as error:
            if pooled is not None:
                raise
            raise SeqLoRAError("The text encoder gives no pooled text, which the model needs", OWN_TEXT) from error
        except RuntimeError as error:  # from what is no linear layer, such as a norm of the text
            if tokens is None or "shape" not in str(error) or str(tokens.shape[-1]) not in str(error):
                raise
            raise SeqLoRAError(f"The model cannot take the text encoder's words, {tokens.shape[-1]} wide", OWN_TEXT) from error
