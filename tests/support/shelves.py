"""Libraries for the stub server, as its routes tell of them."""

from __future__ import annotations

from typing import Any


def shelf(name: str, *concepts: str, **other: Any) -> dict[str, Any]:
    """A library with these concepts; the first one has no picture."""
    told: dict[str, Any] = {"name": name, "rank": 16, "capacity": 8, "targets": "attention and mlp", "problem": ""}
    told["concepts"] = [_concept(concept, bool(i)) for i, concept in enumerate(concepts)]
    return told | {"size": sum(concept["size"] for concept in told["concepts"])} | other


def _concept(name: str, thumbnail: bool) -> dict[str, Any]:
    about = {"name": name, "trigger": f"z{name}", "class_word": "toy", "rank": 12, "created": "2026-11-22T03:00:00Z"}
    return about | {"size": 1_260_000, "method": "SeqLoRA", "steps": 80, "thumbnail": thumbnail}
