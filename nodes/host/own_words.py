"""Triggers with vectors of their own in the host's text encoders.

The host takes vectors in the place of token ids; its `embedding:name` is made of that. So only the tokenizer is another, which
puts them there by itself wherever a trigger stands.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from copy import copy
from typing import Any

from torch import Tensor

from ...seqlora.demo.micro import ENCODER
from ...seqlora.diffusion.fingerprint import weights_hash
from ...seqlora.io.text import split_at_words
from ...seqlora.lora.types import Triggers

# Text encoders that take vectors: their names in a concept's file -> what the host calls them in its models.
NAMES = {"clip_l": ("clip_l", "clip_h"), "clip_g": ("clip_g",), ENCODER: (ENCODER,)}


class OwnWords:
    """In place of the tokenizer inside one of the host's: some words of a text become vectors (k, width) instead of ids.

    `start` and `end` are how many ids a tokenizer puts before and behind every text.
    """

    def __init__(self, tokenizer: Any, vectors: Mapping[str, Tensor], start: int, end: int):
        self.tokenizer, self.vectors, self.start, self.end = tokenizer, dict(vectors), start, end

    def __call__(self, text: str, *args: Any, **kwargs: Any) -> Any:
        parts = split_at_words(unicodedata.normalize("NFC", text), self.vectors)
        if len(parts) == 1:
            return self.tokenizer(text, *args, **kwargs)
        frame, within = self.tokenizer("")["input_ids"], list[Any]()
        for before, word in parts:
            found = self.tokenizer(before)["input_ids"]
            within += [*found[self.start : len(found) - self.end], *(self.vectors[word] if word else ())]
        return {"input_ids": [*frame[: self.start], *within, *frame[len(frame) - self.end :]]}

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


def encoders_of(clip: Any) -> dict[str, str]:
    """Those of a CLIP that take vectors, by their names in a concept's file: what the host calls them."""
    model, tokenizer = getattr(clip, "cond_stage_model", None), getattr(clip, "tokenizer", None)
    found = {}
    for name, places in NAMES.items():
        for place in places:
            reads = getattr(getattr(model, place, None), "process_tokens", None)
            if reads is not None and getattr(getattr(tokenizer, place, None), "tokenizer", None) is not None:
                found[name] = place
    return found


def own_tokenizer(clip: Any, triggers: Triggers) -> Any:
    """The CLIP's tokenizer as it reads these triggers; the same one where none has vectors that its encoders take."""
    tokenizer = clip.tokenizer
    for name, place in encoders_of(clip).items():
        width = _width(getattr(clip.cond_stage_model, place))
        own = {word: vectors[name] for word, vectors in triggers.items() if name in vectors and vectors[name].shape[1] == width}
        if own:
            tokenizer = copy(tokenizer) if tokenizer is clip.tokenizer else tokenizer
            words = copy(getattr(tokenizer, place))
            words.tokenizer = OwnWords(words.tokenizer, own, words.tokens_start, int(words.tokenizer_adds_end_token))
            setattr(tokenizer, place, words)
    return tokenizer


def with_own_words(clip: Any, triggers: Triggers) -> Any:
    """A clone of CLIP for which these triggers mean their vectors; CLIP itself where it takes none of them."""
    tokenizer = own_tokenizer(clip, triggers) if encoders_of(clip) else None
    if tokenizer is None or tokenizer is clip.tokenizer:
        return clip
    changed = clip.clone()
    changed.tokenizer = tokenizer
    return changed


def own_words_hash(clip: Any) -> tuple[str, ...]:
    """What a CLIP reads into words beside its weights, as a hash; nothing where it is as it was loaded."""
    held = []
    for place in encoders_of(clip).values():
        words = getattr(clip.tokenizer, place).tokenizer
        while isinstance(words, OwnWords):
            held += [(f"{place} {word}", vectors) for word, vectors in words.vectors.items()]
            words = words.tokenizer
    return (weights_hash(held),) if held else ()


def _width(encoder: Any) -> int:
    return int(getattr(encoder, "transformer", encoder).get_input_embeddings().weight.shape[1])
