"""What is to be taught: checked, captioned, hashed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SeqLoRAError
from ..io.names import checked_name

MIN_SIDE = 16  # pixels


@dataclass(frozen=True)
class TrainingRequest:
    """What is to be taught. Pictures are (h, w, 3) in 0..1; without captions `a photo of {trigger} {class word}` is used."""

    name: str
    trigger: str
    class_word: str
    pictures: Sequence[Tensor]
    captions: Sequence[str] = ()

    @property
    def subject(self) -> str:
        """What stands for the concept in a caption: trigger and class word."""
        return f"{self.trigger} {self.class_word}".strip()


def prepare_captions(request: TrainingRequest) -> tuple[list[str], int]:
    """One caption per picture, each with the trigger in it; also how often it had to be put in front."""
    subject = request.subject
    if not request.captions:
        return [f"a photo of {subject}"] * len(request.pictures), 0
    if len(request.captions) != len(request.pictures):
        raise SeqLoRAError(
            f"There are {len(request.captions)} captions for {len(request.pictures)} pictures",
            "give one caption per picture, or none",
        )
    prepared, added = [], 0
    for caption in request.captions:
        if re.search(rf"(?<!\w){re.escape(request.trigger)}(?!\w)", caption, re.IGNORECASE):
            prepared.append(caption.strip())
        else:
            prepared.append(f"{request.trigger} {caption.strip()}".strip())
            added += 1
    return prepared, added


def check_request(request: TrainingRequest) -> TrainingRequest:
    """The request with clean names. Raises SeqLoRAError, before any long work, for what cannot be taught."""
    name = checked_name(request.name, "concept name")
    trigger = request.trigger.strip()
    if not trigger:
        raise SeqLoRAError("The trigger is empty", "give a made-up word that stands for the concept in prompts")
    if not request.pictures:
        raise SeqLoRAError("There are no pictures", "connect at least one image")
    for number, picture in enumerate(request.pictures, 1):
        if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < MIN_SIDE:
            raise SeqLoRAError(
                f"Picture {number} has shape {tuple(picture.shape)}", f"pictures must be RGB, at least {MIN_SIDE} pixels a side"
            )
        if not torch.isfinite(picture).all():
            raise SeqLoRAError(f"Picture {number} holds values that are not numbers", "replace it")
        if float(picture.max() - picture.min()) < 1 / 255:
            raise SeqLoRAError(f"Picture {number} is one flat colour", "replace it")
    request = TrainingRequest(name, trigger, request.class_word.strip(), request.pictures, tuple(request.captions))
    prepare_captions(request)
    return request


def data_hash(request: TrainingRequest) -> str:
    digest = hashlib.sha256()
    for picture, caption in zip(request.pictures, prepare_captions(request)[0], strict=True):
        digest.update(f"{tuple(picture.shape)} {caption}\n".encode())
        digest.update((picture * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
