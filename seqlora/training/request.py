"""What is to be taught: checked, captioned, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.model import Model
from ..errors import SeqLoRAError
from ..io.names import checked_name
from ..io.pictures import fitted, to_pil, to_tensor
from ..io.text import as_text, check_characters, clean_text, word_pattern
from ..library.manifest import MAX_TEXT
from ..library.store import request_hash
from ..settings import Settings, legacy_names

MIN_SIDE = 16  # pixels
MOST_PIXELS = 2.5  # in units of the resolution that a model was made for; a photo of 24 megapixels would take hours
RINGING = 0.1  # how far beyond 0..1 a resize may go


@dataclass(frozen=True)
class TrainingRequest:
    """What is to be taught. Pictures are (h, w, 3) in 0..1; for one without a caption `a photo of {trigger} {class word}` is
    used."""

    name: str
    trigger: str
    class_word: str
    pictures: Sequence[Tensor] = ()
    captions: Sequence[str] = ()

    @property
    def subject(self) -> str:
        """What stands for the concept in a caption: trigger and class word."""
        return f"{self.trigger} {self.class_word}".strip()


def prepare_captions(request: TrainingRequest) -> tuple[list[str], int]:
    """One caption per picture, each with the trigger in it; also how often it had to be put in front. A picture without a
    caption has one made of trigger and class word."""
    captions = [as_text(clean_text(caption)) for caption in request.captions]
    if captions and len(captions) != len(request.pictures):
        raise SeqLoRAError(
            f"There are {len(captions)} captions for {len(request.pictures)} pictures", "give one caption per picture, or none"
        )
    prepared, added, trigger = [], 0, word_pattern(request.trigger)
    for caption in captions or [""] * len(request.pictures):
        if not caption:
            prepared.append(f"a photo of {request.subject}")
        elif trigger.search(caption):
            prepared.append(caption)
        else:
            prepared.append(f"{request.trigger} {caption}")
            added += 1
    return prepared, added


def check_request(request: TrainingRequest) -> TrainingRequest:
    """The request with clean names. Raises SeqLoRAError, before any long work, for what cannot be taught."""
    for number, caption in enumerate(request.captions, 1):
        check_characters(caption, f"caption of picture {number}")
    request = check_words(request)
    if not request.pictures:
        raise SeqLoRAError("There are no pictures", "connect at least one image")
    pictures = [_picture(picture, number) for number, picture in enumerate(request.pictures, 1)]
    request = replace(request, pictures=pictures, captions=tuple(request.captions))
    prepare_captions(request)
    return request


def check_words(request: TrainingRequest) -> TrainingRequest:
    """The same of name, trigger and class word alone."""
    name = checked_name(request.name, "concept name")
    trigger, class_word = _word(request.trigger, "trigger"), _word(request.class_word, "class word")
    if not trigger:
        raise SeqLoRAError("The trigger is empty", "give a made-up word that stands for the concept in prompts")
    return replace(request, name=name, trigger=trigger, class_word=class_word)


def _word(text: str, what: str) -> str:
    check_characters(text, what)
    text = clean_text(text)
    if len(text) > MAX_TEXT:
        raise SeqLoRAError(f"The {what} has {len(text)} characters, at most {MAX_TEXT} can be kept", "use a word or two")
    return text


def _picture(picture: Tensor, number: int) -> Tensor:
    """In 0..1, which a little ringing of a resize may have left. Raises SeqLoRAError for what is no picture."""
    if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < MIN_SIDE:
        raise SeqLoRAError(
            f"Picture {number} has shape {tuple(picture.shape)}", f"pictures must be RGB, at least {MIN_SIDE} pixels a side"
        )
    if not torch.isfinite(picture).all():
        raise SeqLoRAError(f"Picture {number} holds values that are not numbers", "replace it")
    least, most = float(picture.min()), float(picture.max())
    if least < -RINGING or most > 1 + RINGING:
        raise SeqLoRAError(f"Picture {number} has values from {least:g} to {most:g}, but 0 to 1 are expected", "scale it")
    if most - least < 1 / 255:
        raise SeqLoRAError(f"Picture {number} is one flat colour", "replace it")
    return picture.clamp(0, 1) if least < 0 or most > 1 else picture


def fit_pictures(request: TrainingRequest, resolution: int) -> tuple[TrainingRequest, str]:
    """The request with pictures that the model can take: those of far more pixels than it was made for are scaled down, as
    `io.pictures.fitted` does; and a sentence on what was done, or ""."""
    pictures, sizes = [], []
    for picture in request.pictures:
        height, width, _ = picture.shape
        if height * width > MOST_PIXELS * resolution**2:
            small = to_tensor(fitted(to_pil(picture), resolution))
            sizes.append(f"{width} x {height} to {small.shape[1]} x {small.shape[0]}")
            picture = small
        pictures.append(picture)
    if not sizes:
        return request, ""
    said = f"{len(sizes)} of {len(pictures)} pictures have far more pixels than this model takes and were scaled down"
    return replace(request, pictures=pictures), f"{said}: {', '.join(dict.fromkeys(sizes))}."


def data_hash(request: TrainingRequest) -> str:
    digest = hashlib.sha256()
    for picture, caption in zip(request.pictures, prepare_captions(request)[0], strict=True):
        digest.update(f"{tuple(picture.shape)} {caption}\n".encode())
        digest.update((picture * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def request_parts(data: str, request: TrainingRequest, settings: Settings, model: Model) -> dict[str, str]:
    """What decides how a concept comes out, by a name that people know -> its hash; `data` is from `data_hash`, or of the LoRA
    that takes the place of pictures."""
    words = {"trigger": request.trigger, "class word": request.class_word}
    source = "pictures or captions" if request.pictures else "LoRA file"
    named = {source: data, "settings": request_hash(legacy_names(settings))[:16], **words}
    return {**model.parts, **{name: request_hash(value)[:16] for name, value in named.items()}}
