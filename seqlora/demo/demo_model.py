"""The demo model as the core takes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..backends.denoisers import FlowDenoiser
from ..backends.model import HeadlessModel
from ..diffusion.model import NO_TRIGGERS
from ..lora.layouts import layout_of
from ..lora.types import Triggers, Vectors
from .pictures import contexts, generic_captions


class DemoModel(HeadlessModel):
    """The demo model."""

    generic_captions: Sequence[str] = generic_captions()
    contexts: Sequence[str] = contexts()
    picture_side = 64
    latent_shape = (16, 16, 16)
    text_encoders: Sequence[str] = ("micro",)

    def __init__(self, path: Path | None = None):
        from . import micro

        self.micro = micro.load_micro(path or micro.WEIGHTS)
        unet = self.micro.unet

        def predict(x: Tensor, timestep: Tensor, cond: Sequence[Tensor]) -> Tensor:
            return micro.velocity(unet, x, timestep, torch.stack(list(cond)))

        super().__init__(unet, FlowDenoiser(predict, torch.device("cpu")), layout_of(unet.config))  # type: ignore[arg-type]

    @property
    def family(self) -> str:
        return "demo"

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        from .micro import PATCH

        latents = []
        for picture in pictures:
            height, width = (side // PATCH * PATCH for side in picture.shape[:2])
            pixels = picture[:height, :width].movedim(-1, 0).float() * 2 - 1
            latents.append(self.micro.vae.encode(pixels[None])[0])
        return latents

    def encode_captions(self, captions: Sequence[str], triggers: Triggers = NO_TRIGGERS) -> list[Tensor]:
        return list(self.micro.encode_text(captions, triggers))

    def pieces(self, word: str) -> int:
        """One for a word of its vocabulary; any other is one too, but means nothing before it is taught."""
        return int(word.lower() in self.micro.tokenizer.ids)

    @torch.no_grad()
    def own_vectors(self, word: str, count: int) -> Vectors:
        return {self.text_encoders[0]: self.micro.own_vectors(word, count)}

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, 16, h, w) -> pictures (n, H, W, 3) in 0..1."""
        return (self.micro.vae.decode(latents).movedim(1, -1) + 1) / 2
