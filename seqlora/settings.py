"""What can be chosen when a concept is taught, and the named methods: ours and the baselines it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from .errors import SeqLoRAError


@dataclass(frozen=True)
class Settings:
    steps: int = 1000  # forward and backward passes
    batch_size: int = 1
    learning_rate: float = 1e-4  # of the coefficients A
    basis_learning_rate: float = 3e-5  # of the basis B; 0 freezes it
    seed: int = 0
    basis_init: Literal["contrastive", "pca", "random"] = "contrastive"
    orthogonality: Literal["exact", "metric", "none"] = "exact"  # none: plain LoRA, no manifold at all
    when_full: Literal["metric", "refuse"] = "metric"  # for layers that have no room for another orthogonal basis
    co_training: Literal["stochastic", "modular", "cumulative"] = "stochastic"
    schedule: Literal["joint", "alternating", "finite_difference"] = "joint"
    inner_steps: int = 4  # lower-level steps per upper-level step of the two alternating schedules
    interference_weight: float = 0.4  # strength of the interference penalty, for each concept that the library is planned for
    # sensitivity: each layer counts as much as the model's output feels it; energy: as its own output, all layers alike
    weighting: Literal["sensitivity", "energy"] = "sensitivity"
    overlap: float = 0.0  # strength of O-LoRA's soft penalty on |F'B|, a baseline

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name, value in asdict(self).items():
            choices = get_args(hints[name])
            if choices and value not in choices:
                raise SeqLoRAError(f"{name} is '{value}', but must be one of: {', '.join(choices)}.")
            if not choices and not 0 <= value < math.inf:
                raise SeqLoRAError(f"{name} is {value}, but must be a number that is not negative.")
        for name in ("steps", "batch_size", "inner_steps"):
            if getattr(self, name) < 1:
                raise SeqLoRAError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.learning_rate <= 0:
            raise SeqLoRAError("learning_rate is 0, so nothing would be learned; use a number above 0.")

    def with_(self, **changes: Any) -> Settings:
        return replace(self, **changes)


_PUBLISHED = {"interference_weight": 0.0, "co_training": "modular"}
METHODS: dict[str, dict[str, Any]] = {
    "seqlora": {},
    "lora": {"basis_init": "random", "orthogonality": "none", **_PUBLISHED},
    "orthogonal adaptation": {"basis_init": "random", "basis_learning_rate": 0.0, **_PUBLISHED},
    "inflora": {"basis_init": "pca", "basis_learning_rate": 0.0, **_PUBLISHED},
    "o-lora": {"basis_init": "random", "orthogonality": "none", "overlap": 0.1, **_PUBLISHED},
    "continual alternating": {"basis_init": "random", "schedule": "alternating", "inner_steps": 1, **_PUBLISHED},
    "frozen contrastive": {"basis_learning_rate": 0.0},
}


def method_settings(method: str, base: Settings) -> Settings:
    """The settings `base` with what makes the named method what it is."""
    if method not in METHODS:
        raise SeqLoRAError(f"method is '{method}', but must be one of: {', '.join(METHODS)}.")
    return base.with_(**METHODS[method])


def method_of(record: Mapping[str, Any]) -> str:
    """The method that taught with recorded settings: of all that fit the one that asks for most; SeqLoRA asks for nothing."""
    settings = from_record(record)
    return max((len(own), name) for name, own in METHODS.items() if own.items() <= settings.items())[1]


# What format 1 of libraries called some settings, in whose names requests are hashed for good.
_NAMES_1 = {"basis_init": "basis_start", "co_training": "context", "interference_weight": "interference"}
_FREE_1 = "free"  # orthogonality="none"


def from_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record under today's names; it may lack some, and is not checked."""
    today = {old: name for name, old in _NAMES_1.items()}
    found = {today.get(name, name): value for name, value in record.items()}
    if found.get("orthogonality") == _FREE_1:
        found["orthogonality"] = "none"
    return found


def legacy_names(settings: Settings) -> dict[str, Any]:
    """The settings under the names of format 1: what a request's hash is made of, so that old requests are found."""
    found = {_NAMES_1.get(name, name): value for name, value in asdict(settings).items()}
    if settings.orthogonality == "none":
        found["orthogonality"] = _FREE_1
    return found
