"""Whether the text that a model is handed is as wide as what it takes: one sentence instead of a crash inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import SeqLoRAError
from ..lora.targets import is_linear

OWN_TEXT = "connect the text encoder that belongs to the model"


@contextmanager
def text_fits(model: nn.Module, tokens: Tensor | None, pooled: Tensor | None, remedy: str = OWN_TEXT) -> Iterator[None]:
    """While open, a layer that is handed text of another width than it takes says so, whatever model it is in.

    `tokens` are a text's words (..., words, width) and `pooled` the text as a whole (..., width), where there is any. Raises
    SeqLoRAError.
    """

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        found, wanted = (args[0].shape[-1] if args and isinstance(args[0], Tensor) else 0), int(module.in_features)  # type: ignore[arg-type]
        if not found or found == wanted:
            return
        if tokens is not None and found == tokens.shape[-1]:
            raise SeqLoRAError(f"The text encoder's words are {found} wide, but the model takes {wanted}", remedy)
        if pooled is not None and found >= pooled.shape[-1]:  # alone, or beside the picture's size
            width = pooled.shape[-1]
            raise SeqLoRAError(
                f"The text encoder's pooled text is {width} wide, but the model takes {width + wanted - found}", remedy
            )

    with ExitStack() as undo:
        for module in filter(is_linear, model.modules()):
            undo.callback(module.register_forward_pre_hook(look).remove)
        try:
            yield
        except RuntimeError as error:  # from what is no linear layer, such as a norm of the text
            if tokens is None or "shape" not in str(error) or str(tokens.shape[-1]) not in str(error):
                raise
            raise SeqLoRAError(f"The model cannot take the text encoder's words, {tokens.shape[-1]} wide", remedy) from error
