"""A taught concept, before it is filed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..lora.types import LoRAPair, Vectors
from .moments import Moments


@dataclass
class TrainedConcept:
    """A taught concept."""

    pairs: dict[str, LoRAPair]
    moments: Moments  # C_t, with the vectors
    full_layers: list[str]  # had no room left: trained without the hard complement
    vectors: Vectors = field(default_factory=dict)  # in the place of the trigger's own
    # Means over the same noised pictures, without the concept and with it; see `ConceptTrainer.judge`.
    error_without: float = 0.0
    error_with: float = 0.0
    steps: int = 0  # fewer than were asked for where the training was ended early
    losses: list[float] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)  # of the lower level: norm of dL/dA, and of the vectors' gradient
    gradients: list[float] = field(default_factory=list)  # of the upper level: norm of the Riemannian gradient
