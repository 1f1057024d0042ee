"""A text-to-image model as a host gives it to the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from ..lora.types import LoRAPair, Triggers, Vectors
from .denoiser import Denoiser

NO_TRIGGERS: Triggers = {}


class Model(Protocol):
    """A text-to-image model as a host gives it to us."""

    denoiser: Denoiser
    layout: Mapping[str, Any]  # see lora/layouts.py
    fingerprint: str
    parts: dict[str, str]  # what else decides how a concept comes out: "model", "VAE" and so on -> a hash of it
    remark: str  # a sentence on how its parts suit each other, "" where there is nothing to say
    generic_captions: Sequence[str]  # that stand for everything else the model can draw
    text_encoders: Sequence[str]  # names of those that take a concept's own vectors and can be differentiated through

    @property
    def family(self) -> str:
        """A key of `families.FAMILIES`: what suits it where nobody chose."""
        ...

    def layers(self, targets: str) -> dict[str, nn.Module]:
        """Those that can be taught, by their names in a library."""
        ...

    def linear_layers(self) -> dict[str, nn.Module]:
        """All linear layers that a library could name."""
        ...

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Pictures (h, w, 3) in 0..1 -> latents (c, h', w') as the denoiser sees them."""
        ...

    def encode_captions(self, captions: Sequence[str], triggers: Triggers = NO_TRIGGERS) -> list[Any]:
        """Captions -> conditionings that the denoiser takes, words that have vectors of their own replaced by these; with a
        gradient in them where they want one."""
        ...

    def pieces(self, word: str) -> int:
        """How many tokens the text encoder takes a word for, the most of several encoders; 0 where that is not known."""
        ...

    def own_vectors(self, word: str, count: int) -> Vectors:
        """What a word's `count` vectors start from: those that each of `text_encoders` has for it, fp32."""
        ...


class DrawingModel(Model, Protocol):
    """A model that can also draw, without a host's own sampler."""

    default_guidance: float
    contexts: Sequence[str]  # captions with "{}" for what is in the picture

    @property
    def latent_shape(self) -> Sequence[int]:
        """Of a picture as large as those that the model was trained on."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (k, c, h', w') -> pictures (k, h, w, 3) in 0..1."""
        ...


class SamplingModel(DrawingModel, Protocol):
    """A model that can also draw with concepts on it by itself."""

    picture_side: int  # pixels; what the model was trained on

    def using(self, composed: Mapping[str, LoRAPair]) -> AbstractContextManager[None]:
        """While open, the model draws with these concepts; no weight is touched."""
        ...
