"""A judge for the demo: a small network that names the emoji in a picture, so that results can be counted, not admired."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .pictures import all_emoji

WEIGHTS = Path(__file__).parent / "classifier.safetensors"
EMBEDDING = 128
LOGIT_SCALE = 24.0  # cosines alone are too close together for a softmax over 720 classes


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Classifier(nn.Module):
    """Images (b, 3, 64, 64) in -1..1 -> logits (b, 720), one per entry of `all_emoji()` and in its order."""

    def __init__(self) -> None:
        super().__init__()
        # The last map is flattened, not averaged: where the parts are is what tells many emoji apart.
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            _conv(12, 32),
            _conv(32, 64, 2),
            Residual(64),
            _conv(64, 96, 2),
            Residual(96),
            _conv(96, 64, 2),
        )
        self.head = nn.Linear(64 * 4 * 4, EMBEDDING)
        self.classes = nn.Parameter(torch.randn(len(all_emoji()), EMBEDDING))

    def embed(self, images: Tensor) -> Tensor:
        """Images (b, 3, 64, 64) in -1..1 -> unit vectors (b, 128); their dot product says how alike two pictures are."""
        return F.normalize(self.head(self.body(images).flatten(1)).float(), dim=1)

    def logits(self, embedded: Tensor) -> Tensor:
        """What `embed` gave -> logits (b, 720)."""
        return LOGIT_SCALE * embedded @ F.normalize(self.classes.float(), dim=1).T

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.embed(images))


@cache
def load_classifier(path: Path = WEIGHTS) -> Classifier:
    """The shipped classifier in fp32, frozen, on the CPU. One shared instance: do not train or move it."""
    classifier = Classifier()
    classifier.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return classifier.eval().requires_grad_(False)


def recognise(images: Tensor) -> Tensor:
    """Images (b, 3, 64, 64) in -1..1, on any device -> the index into `all_emoji()` of each, (b,), on the CPU."""
    return load_classifier()(images.detach().float().cpu()).argmax(1)
