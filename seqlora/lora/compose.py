"""A selection of concepts, summed: one concatenated adapter per layer."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

import torch

from ..errors import SeqLoRAError
from .types import Concept, LoRAPair

# The editor reads selections too, by the same rules: web/picker/selection.mjs.
_SPACE = " \t\u00a0\u3000"
_LINE_END = re.compile(r"\r\n|\r|\n")
_COLON = re.compile("[:\uff1a]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r"<lora:([^:>]+):?([^:>]*)")
AUTO = "auto"
MAX_STRENGTH = 100.0  # either way
STRENGTHS = f"from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}"  # in sentences


def parse_selection(text: str, known: Sequence[str], prompted: Mapping[str, float] | None = None) -> dict[str, float]:
    """Reads `name`, `name: 0.8`, `*` (all) or `auto`, one a line, `#` for remarks; a named concept overrides the others.

    `auto` are the concepts that a prompt names, with its strengths: `prompted`. A concept of that name is meant first. Strength
    0 drops. Upper and lower case are the same where only one name is meant. Raises SeqLoRAError for an unknown or repeated name
    (listing the known ones), a strength that is no number from -100 to 100, and `auto` without a prompt.
    """
    named: dict[str, float] = {}
    for raw in _LINE_END.split(unicodedata.normalize("NFC", text)):
        line = raw.partition("#")[0].strip(_SPACE)
        if not line:
            continue
        if tag := _TAG.match(line):
            wanted = ": ".join(part.strip(_SPACE) for part in tag.groups() if part)
            raise SeqLoRAError(f"'{line}' is a tag for prompts", f"here write '{wanted}'")
        *before, last = _COLON.split(line)
        name = _known_name(line[: -len(last) - 1].strip(_SPACE) if before else line, known)
        strength = _number(last.strip(_SPACE)) if before else 1.0
        if strength is None:
            raise SeqLoRAError(
                f"'{line}' has no usable strength after the colon",
                f"write a number {STRENGTHS}, for example '{name}: 0.8'",
            )
        if name == AUTO and name not in known and prompted is None:
            raise SeqLoRAError(f"'{AUTO}' are the concepts that the prompt names, and there is none here", "connect a prompt")
        if name not in ("*", AUTO) and name not in known:
            raise SeqLoRAError(f"There is no concept '{name}' in this library", f"it has: {', '.join(known) or 'none yet'}")
        if name in named:
            raise SeqLoRAError(f"'{name}' is selected twice", "keep one of the lines")
        named[name] = strength
    chosen = dict.fromkeys(known, named.pop("*", 0.0))
    if AUTO not in known and AUTO in named:
        factor = named.pop(AUTO)
        chosen |= {name: factor * strength for name, strength in (prompted or {}).items()}
    return {name: strength for name, strength in (chosen | named).items() if strength}


def _known_name(said: str, known: Sequence[str]) -> str:
    """As the library spells it, where upper and lower case are all that differs."""
    alike = [name for name in known if name.lower() == said.lower()]
    return alike[0] if len(alike) == 1 and said not in known else said


def _number(said: str) -> float | None:
    """None where it is no strength."""
    value = float(said) if _NUMBER.fullmatch(said) else math.inf
    return value if abs(value) <= MAX_STRENGTH else None


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


def owners(concepts: Sequence[Concept]) -> dict[str, list[int]]:
    """For each layer of their composition: the number of the concept that each column is of."""
    found: dict[str, list[int]] = {}
    for number, concept in enumerate(concepts):
        for layer, pair in concept.items():
            found.setdefault(layer, []).extend([number] * pair.basis.shape[1])
    return found
