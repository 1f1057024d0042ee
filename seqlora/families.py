"""Families of models, and what suits each where nobody chose: the one table of defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Family(NamedTuple):
    title: str
    resolution: int  # pixels; the usual side of a training picture
    steps: int
    batch_size: int
    learning_rate: float
    measured: bool = False  # or a starting point, from what other trainers use


OTHER = "other"
BASIS_SHARE = 0.3  # the basis learns at this share of the coefficients' rate
FAMILIES: dict[str, Family] = {
    "demo": Family("SeqLoRA Demo Model", 64, 80, 8, 2e-2, measured=True),
    "sd15": Family("SD 1.x", 512, 1000, 1, 1e-4),
    "sd2": Family("SD 2.x", 768, 1000, 1, 1e-4),
    "sdxl": Family("SDXL", 1024, 1500, 1, 1e-4),
    "sd3": Family("SD 3, 3.5", 1024, 1500, 1, 1e-4),
    "flux": Family("Flux", 1024, 2000, 1, 1e-4),
    OTHER: Family("any other", 1024, 1500, 1, 1e-4),
}
UNETS = {768: "sd15", 1024: "sd2", 2048: "sdxl"}  # by the width of the text that they take


def usual(family: str) -> Family:
    """What suits a family, a key of FAMILIES; others count as "other"."""
    return FAMILIES.get(family, FAMILIES[OTHER])


def family_of(layout: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> str:
    """The key in FAMILIES of a model with this layout (see lora/layouts.py) and these layers, name -> (m, n)."""
    if layout["family"] == "unet":
        widths = [shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k")]
        return UNETS.get(widths[0] if widths else 0, OTHER)
    return layout["family"] if layout["family"] in FAMILIES else OTHER
