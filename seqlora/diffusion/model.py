"""A text-to-image model as a host gives it to the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from .denoiser import Denoiser


class Model(Protocol):
    """A text-to-image model as a host gives it to us."""

    denoiser: Denoiser
    layout: Mapping[str, Any]  # see keys.py
    fingerprint: str
    generic_captions: Sequence[str]  # that stand for everything else the model can draw

    @property
    def family(self) -> str:
        """A key of `families.FAMILIES`: what suits it where nobody chose."""
        ...

    def layers(self, targets: str) -> dict[str, nn.Module]: ...

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Pictures (h, w, 3) in 0..1 -> latents (c, h', w') as the denoiser sees them."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> list[Any]:
        """Captions -> conditionings that the denoiser takes."""
        ...
