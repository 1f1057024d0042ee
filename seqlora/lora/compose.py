"""A selection of concepts, summed: one concatenated adapter per layer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch

from ..errors import SeqLoRAError
from .types import Concept, LoRAPair


def parse_selection(text: str, known: Sequence[str]) -> dict[str, float]:
    """Reads `name`, `name: 0.8` or `*` (all), one a line, `#` for remarks; a named concept overrides `*`. Strength 0 drops.

    Raises SeqLoRAError for an unknown or repeated name (listing the known ones) or a strength that is no number.
    """
    named: dict[str, float] = {}
    for raw in unicodedata.normalize("NFC", text).splitlines():
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        name, colon, number = line.rpartition(":")
        if not colon:
            name, number = line, "1"
        name = name.strip()
        try:
            strength = float(number)
        except ValueError:
            strength = float("nan")
        if not abs(strength) <= 100:
            raise SeqLoRAError(f"'{line}' has no usable strength after the colon", f"write for example '{name}: 0.8'")
        if name != "*" and name not in known:
            raise SeqLoRAError(f"There is no concept '{name}' in this library", f"it has: {', '.join(known) or 'none yet'}")
        if name in named:
            raise SeqLoRAError(f"'{name}' is selected twice", "keep one of the lines")
        named[name] = strength
    chosen = dict.fromkeys(known, named.pop("*", 0.0))
    return {name: strength for name, strength in (chosen | named).items() if strength}


def compose(concepts: Sequence[tuple[Concept, float]]) -> dict[str, LoRAPair]:
    """The sum of s_i A_i B_i' as one pair per layer: A = [s_1 A_1, s_2 A_2, ...], B = [B_1, B_2, ...]. Exact."""
    parts: dict[str, list[tuple[LoRAPair, float]]] = {}
    for concept, strength in concepts:
        for layer, pair in concept.items():
            parts.setdefault(layer, []).append((pair, strength))
    return {
        layer: LoRAPair(torch.cat([s * pair.up for pair, s in found], 1), torch.cat([pair.basis for pair, _ in found], 1))
        for layer, found in parts.items()
    }
