"""Selected concepts of a library, summed."""

from __future__ import annotations

from collections.abc import Mapping

from ..lora.compose import compose
from ..lora.types import LoRAPair
from .store import Library


def compose_library(library: Library, selection: Mapping[str, float], strength: float = 1.0) -> dict[str, LoRAPair]:
    """Reads only the selected concepts' files."""
    return compose([(library.load(name), strength * own) for name, own in selection.items()])
