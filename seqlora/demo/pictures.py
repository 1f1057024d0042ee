"""Emoji pictures and their captions: what the demo model is trained on and what the demo teaches it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .micro import IMAGE_SIZE

HERE = Path(__file__).parent
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "black": (25, 25, 25),
    "red": (205, 70, 65),
    "green": (100, 180, 100),
    "blue": (90, 130, 215),
    "yellow": (245, 225, 120),
    "pink": (250, 180, 200),
}


@dataclass(frozen=True)
class Emoji:
    codepoint: int
    name: str
    class_word: str
    held_out: bool


@cache
def all_emoji() -> tuple[Emoji, ...]:
    """Base emoji first, then the held-out ones; the order is the classifier's."""
    return tuple(Emoji(**entry) for entry in json.loads((HERE / "emoji.json").read_text(encoding="utf-8")))


@cache
def held_out_emoji() -> tuple[Emoji, ...]:
    return tuple(e for e in all_emoji() if e.held_out)


def generic_captions() -> list[str]:
    """A spread of base emoji that stands for everything the demo model can draw."""
    return [f"a photo of {emoji.name}" for emoji in all_emoji() if not emoji.held_out][::5]


def contexts() -> list[str]:
    """Captions of one emoji, "{}", on every background that the demo model knows."""
    return ["a photo of {}", *(f"a photo of {{}} on a {name} background" for name in BACKGROUNDS)]


@cache
def held_out_glyphs() -> Tensor:
    """The held-out emoji as (count, 4, size, size) in 0..1, in the order of `held_out_emoji`."""
    sheet = np.asarray(Image.open(HERE / "concepts.png").convert("RGBA"))
    size = sheet.shape[1] // 12
    cells = [sheet[r : r + size, c : c + size] for r in range(0, sheet.shape[0], size) for c in range(0, sheet.shape[1], size)]
    return glyph_tensor(np.stack(cells[: len(held_out_emoji())]))


def glyph_tensor(glyphs: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(glyphs)).permute(0, 3, 1, 2).float() / 255


def place(glyphs: Tensor, scale: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Glyphs (b, 4, s, s) placed on the canvas; scale as a share of its side, angle in radians, shift (b, 2) in -1..1."""
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rotation = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)
    theta = torch.cat([rotation, -(rotation @ shift[..., None])], -1)
    grid = F.affine_grid(theta, [len(glyphs), 4, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    # Premultiplied, or the black of transparent pixels bleeds into the edges.
    premultiplied = torch.cat([glyphs[:, :3] * glyphs[:, 3:], glyphs[:, 3:]], 1)
    return F.grid_sample(premultiplied, grid, mode="bilinear", align_corners=False)


def paint(layers: list[Tensor], background: Tensor) -> Tensor:
    """Placed glyphs over a background colour (b, 3) in 0..1 -> images (b, 3, H, W) in -1..1."""
    image = background[:, :, None, None].expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE)
    for layer in layers:
        image = layer[:, :3] + image * (1 - layer[:, 3:])
    return image * 2 - 1


def background_colours(names: list[str]) -> Tensor:
    return torch.tensor([BACKGROUNDS[name] for name in names]) / 255


def jitter(count: int, generator: torch.Generator, low: float = 0.8, high: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
    """Random scale, angle and shift of a picture with one emoji."""

    def uniform(a: float, b: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (b - a) + a

    return uniform(low, high, count), uniform(-1, 1, count) * math.radians(5), uniform(-0.05, 0.05, count, 2)


def concept_pictures(emoji: Emoji, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """`count` pictures of one held-out emoji, (count, 3, H, W) in -1..1, and the background of each."""
    index = held_out_emoji().index(emoji)
    generator = torch.Generator().manual_seed(seed * 1000 + index)
    names = list(BACKGROUNDS)
    order = torch.randperm(len(names), generator=generator).tolist()
    chosen = [names[order[i % len(names)]] for i in range(count)]
    glyphs = held_out_glyphs()[index].expand(count, -1, -1, -1)
    return paint([place(glyphs, *jitter(count, generator))], background_colours(chosen)), chosen


def trigger_word(emoji: Emoji) -> str:
    """A pronounceable word that means nothing yet, always the same for an emoji."""
    syllables = [consonant + vowel for consonant in "bdfgjklmnprstvz" for vowel in "aeiou"]
    digest = hashlib.sha256(emoji.name.encode()).digest()
    return "".join(syllables[digest[i] % len(syllables)] for i in range(3))
