"""Captions to conditionings, and whether the text encoder saw the trigger in them.

What stands in a caption need not reach the model: behind the encoder's window it is cut off, and a tokenizer may drop what it
does not know. So it is not the text that is checked but what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..diffusion.model import Model
from ..errors import SeqLoRAError
from ..io.text import word_pattern
from .request import TrainingRequest, prepare_captions

LONG = 12  # words; a shorter caption is within any encoder's window


def seen_captions(model: Model, request: TrainingRequest) -> tuple[list[str], str]:
    """A caption for each picture, and a sentence where some had to be changed for the trigger to be seen.

    Raises SeqLoRAError where the text encoder does not see the trigger at all.
    """
    captions, _ = prepare_captions(request)
    front = f"a photo of {request.subject}"
    doubtful = list(dict.fromkeys([front, *(caption for caption in captions if len(caption.split()) > LONG)]))
    unseen = _unseen(model, doubtful, request.trigger)
    if front in unseen:
        raise SeqLoRAError(
            f"The text encoder does not see the trigger '{request.trigger}': a caption means the same to it without",
            "choose a word of plain letters",
        )
    changed = sum(caption in unseen for caption in captions)
    said = (
        f"In {changed} captions the trigger stood behind what the text encoder reads; it was put in front." if changed else ""
    )
    return [f"{request.trigger} {c}" if c in unseen else c for c in captions], said


def _unseen(model: Model, captions: Sequence[str], trigger: str) -> set[str]:
    """The captions that encode to the same, to the bit, without the trigger."""
    pattern = word_pattern(trigger)
    without = [" ".join(pattern.sub(" ", caption).split()) for caption in captions]
    encoded = model.encode_captions([*captions, *without])
    pairs = zip(captions, encoded, encoded[len(captions) :], strict=False)
    return {caption for caption, one, other in pairs if _equal(one, other)}


def _equal(one: Any, other: Any) -> bool:
    mine, others = _tensors(one), _tensors(other)
    return len(mine) == len(others) and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(mine, others, strict=True))


def _tensors(conditioning: Any) -> list[Tensor]:
    """All that are in it, also where a host wraps them in an object of its own."""
    plain = conditioning if isinstance(conditioning, Tensor) or not hasattr(conditioning, "__dict__") else vars(conditioning)
    return [part for part in tree_flatten(plain)[0] if isinstance(part, Tensor)]
