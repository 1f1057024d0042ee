"""The vectors that stand for the trigger while a concept is taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..diffusion.batches import Examples
from ..diffusion.model import Model
from ..io.text import word_pattern
from ..lora.types import Triggers
from ..settings import Settings

WITHOUT = "This model's text encoder takes no vectors for the trigger; the concept is taught without."


def learnable(settings: Settings, model: Model) -> tuple[Settings, str]:
    """The settings as this model can be taught, and a sentence where that is without vectors that were asked for."""
    if not settings.trigger_vectors or model.text_encoders:
        return settings, ""
    return settings.with_(trigger_vectors=0), WITHOUT


class LearnedTrigger:
    """A trigger's vectors, and the captions as the text encoder sees them with these.

    `leaves` are what is learned: the vectors in units of the root mean square of what they start from, so that one rate suits
    every text encoder. fp32, on the model's device, with room for gradients.
    """

    def __init__(self, model: Model, word: str, captions: Sequence[str], count: int):
        self.model, self.word, self.captions = model, word, list(captions)
        start = {name: own.float().to(model.denoiser.device) for name, own in model.own_vectors(word, count).items()}
        self.units = {name: float(own.square().mean().sqrt()) for name, own in start.items()}
        self.leaves = {name: (own / self.units[name]).requires_grad_() for name, own in start.items()}
        mentions = word_pattern(word)
        self._changing = [bool(mentions.search(caption)) for caption in self.captions]

    @classmethod
    def of(cls, settings: Settings, model: Model, word: str, captions: Sequence[str]) -> LearnedTrigger | None:
        """None where the settings want no vectors."""
        return cls(model, word, captions, settings.trigger_vectors) if settings.trigger_vectors else None

    def triggers(self) -> Triggers:
        """As the model takes them, with a gradient."""
        return {self.word: {name: leaf * self.units[name] for name, leaf in self.leaves.items()}}

    def values(self) -> dict[str, Tensor]:
        """The vectors as they are now, copied to the CPU."""
        return {name: vectors.detach().cpu().clone() for name, vectors in self.triggers()[self.word].items()}

    def conds(self, examples: Examples, picked: Sequence[int]) -> list[Any]:
        """Conditionings of these examples with the vectors as they are; each caption that names the trigger is encoded once."""
        texts = list(dict.fromkeys(self.captions[i] for i in picked if self._changing[i]))
        encoded = dict(zip(texts, self.model.encode_captions(texts, self.triggers()), strict=True))
        return [encoded[self.captions[i]] if self._changing[i] else examples.conds[i] for i in picked]

    @torch.no_grad()
    def examples(self, examples: Examples) -> Examples:
        """All of them with the vectors as they are."""
        return replace(examples, conds=self.conds(examples, range(len(self.captions))))
