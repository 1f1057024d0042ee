"""The rows of the benchmark: published methods, the same with our penalty, ours, its variants, all at once.

Same layers, rank, pictures, batch size and passes for all. A row's learning rates and penalty are tuned on emoji that no test
uses, unless it is a variant of another row: then it takes that row's, so that one thing differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seqlora.settings import METHODS as CORE
from seqlora.settings import Settings, method_settings

STEPS, BATCH_SIZE, RANK = 60, 4, 4
# Raised when a change of the core teaches other concepts with the same settings. A change of a setting needs no mention.
REVISION = 1
KEPT = 0.95  # share of the base model's own emoji that a library should leave
CAPACITY = 32  # concepts that the libraries are planned for; more are taught
TUNING = 12  # concepts that no test uses
BASE = Settings(steps=STEPS, batch_size=BATCH_SIZE)
PUBLISHED, PENALISED, OURS, CONTEXTS, CHANGES, TOGETHER = (
    "as published",
    "with our penalty",
    "SeqLoRA and its schedules",
    "training context",
    "one thing changed",
    "taught all at once",
)
# The basis moves at a third of the rate of the coefficients.
RATES = ({"learning_rate": 1e-3}, {"learning_rate": 3e-3}, {"learning_rate": 1e-2}, {"learning_rate": 3e-2})
RATES_AND_STRENGTHS = (
    {"learning_rate": 2e-2, "interference_weight": 0.2},
    {"learning_rate": 2e-2, "interference_weight": 0.4},
    {"learning_rate": 4e-2, "interference_weight": 0.4},
    {"learning_rate": 8e-2, "interference_weight": 0.8},
)
# For the two closest rivals, whose best of the four was at an end: more beyond it.
WEAKER = (
    {"learning_rate": 2e-2, "interference_weight": 0.02},
    {"learning_rate": 2e-2, "interference_weight": 0.1},
    *RATES_AND_STRENGTHS,
)
STRONGER = (*RATES_AND_STRENGTHS, {"learning_rate": 1.6e-1, "interference_weight": 1.6})
# A trigger's vectors, at the rate and strength that the row without them was tuned to.
TRIGGERS = tuple(
    {"learning_rate": 4e-2, "interference_weight": 0.4, "trigger_vectors": count, "trigger_learning_rate": rate}
    for count, rate in ((0, 0.05), (1, 0.02), (1, 0.05), (2, 0.02), (2, 0.05))
)
OUR_START = {"co_training": "stochastic", "basis_init": "contrastive"}
RATES_AND_OVERLAPS = (
    {"learning_rate": 3e-3, "overlap": 0.1},
    {"learning_rate": 1e-2, "overlap": 0.1},
    {"learning_rate": 1e-2, "overlap": 1.0},
    {"learning_rate": 3e-2, "overlap": 1.0},
)


@dataclass(frozen=True)
class Method:
    title: str
    group: str
    core: str = "seqlora"  # the core's named method that it starts from
    changes: Mapping[str, Any] = field(default_factory=dict)
    tuned_like: str = ""  # the row whose tuning it takes
    grid: Sequence[Mapping[str, float]] = RATES_AND_STRENGTHS
    tried_on: int = TUNING  # concepts on which the grid is tried
    capacity: int = CAPACITY  # planned concepts as far as they decide the layers' rank
    planned: int = CAPACITY  # planned concepts as far as they scale the penalty
    contrast: float = 0.0  # least contrast of a layer that gets any rank, see Bench.contrast
    keeps: float = 0.0  # of the settings tried, only those count that keep this share of the base emoji
    together: bool = False  # one adapter for all concepts

    def settings(self, tuned: Mapping[str, float]) -> Settings:
        chosen = method_settings(self.core, BASE.with_(**tuned))
        frozen = chosen.basis_learning_rate == 0
        chosen = chosen.with_(basis_learning_rate=0.0 if frozen else tuned["learning_rate"] / 3)
        return chosen.with_(**{name: value for name, value in tuned.items() if name != "learning_rate"}, **self.changes)


def _published(core: str, title: str, grid: Sequence[Mapping[str, float]] = RATES) -> Method:
    return Method(title, PUBLISHED, core, grid=grid)


def _penalised(core: str, title: str, grid: Sequence[Mapping[str, float]] = RATES_AND_STRENGTHS, **changes: Any) -> Method:
    return Method(title, PENALISED, core, {"co_training": "modular", **changes}, grid=grid)


def _variant(title: str, group: str = CHANGES, like: str = "seqlora", core: str = "seqlora", **changes: Any) -> Method:
    return Method(title, group, core, changes, tuned_like=like)


METHODS: dict[str, Method] = {
    "lora": _published("lora", "independent LoRA"),
    "oa": _published("orthogonal adaptation", "Orthogonal Adaptation"),
    "inflora": _published("inflora", "InfLoRA basis"),
    "olora": _published("o-lora", "O-LoRA", RATES_AND_OVERLAPS),
    "alternating-published": _published("continual alternating", "continual alternating"),
    "lora+": _penalised("lora", "independent LoRA + penalty"),
    "oa+": _penalised("orthogonal adaptation", "Orthogonal Adaptation + penalty"),
    "inflora+": _penalised("inflora", "InfLoRA basis + penalty"),
    "olora+": _penalised("o-lora", "O-LoRA + penalty"),
    "alternating-published+": _penalised("continual alternating", "continual alternating + penalty"),
    "frozen": Method("frozen contrastive basis + penalty", PENALISED, "frozen contrastive", grid=WEAKER),
    "frozen-kept": Method(
        f"frozen contrastive, tuned to keep {KEPT:.0%} of the base emoji",
        PENALISED,
        "frozen contrastive",
        tuned_like="frozen",
        keeps=KEPT,
    ),
    "free": _penalised("lora", "LoRA + penalty, our start and context", STRONGER, **OUR_START),
    "seqlora": Method("SeqLoRA (joint)", OURS),
    "alternating": Method("SeqLoRA, alternating", OURS, changes={"schedule": "alternating", "inner_steps": 1}),
    "finite-difference": Method(
        "SeqLoRA, finite difference", OURS, changes={"schedule": "finite_difference", "inner_steps": 1}
    ),
    # As many updates of the basis as in the joint schedule: a round takes one pass for A, and one or four for B.
    "alternating-equal": _variant(
        "SeqLoRA, alternating, twice the passes",
        OURS,
        "alternating",
        schedule="alternating",
        inner_steps=1,
        steps=2 * STEPS,
    ),
    "finite-difference-equal": _variant(
        "SeqLoRA, finite difference, five times the passes",
        OURS,
        "finite-difference",
        schedule="finite_difference",
        inner_steps=1,
        steps=5 * STEPS,
    ),
    "metric": _variant("metric instead of exact", OURS, orthogonality="metric"),
    "modular": _variant("SeqLoRA, modular context", CONTEXTS, co_training="modular"),
    "cumulative": _variant("SeqLoRA, cumulative context", CONTEXTS, co_training="cumulative"),
    "lora+stochastic": _variant("independent LoRA + penalty, stochastic", CONTEXTS, "lora+", "lora", co_training="stochastic"),
    "lora+cumulative": _variant("independent LoRA + penalty, cumulative", CONTEXTS, "lora+", "lora", co_training="cumulative"),
    "frozen-modular": _variant("frozen contrastive, modular", CONTEXTS, "frozen", "frozen contrastive", co_training="modular"),
    "frozen-cumulative": _variant(
        "frozen contrastive, cumulative", CONTEXTS, "frozen", "frozen contrastive", co_training="cumulative"
    ),
    "energy": Method("penalty by each layer's own energy", CHANGES, changes={"weighting": "energy"}),
    "frozen-half": Method(
        "frozen contrastive, half of the narrow layers' width",
        CHANGES,
        "frozen contrastive",
        tuned_like="frozen",
        capacity=CAPACITY // 2,
    ),
    "free-half": Method(
        "the same LoRA, twice the rank",
        CHANGES,
        "lora",
        OUR_START,
        tuned_like="free",
        capacity=CAPACITY // 2,
    ),
    "crowded": Method("exact, all of the narrow layers' width used", CHANGES, tuned_like="seqlora", capacity=CAPACITY // 4),
    "half": Method("exact, half of the narrow layers' width used", CHANGES, tuned_like="seqlora", capacity=CAPACITY // 2),
    "wide-metric": Method("metric, twice the rank", CHANGES, changes={"orthogonality": "metric"}, capacity=CAPACITY // 2),
    "contrast": Method(
        f"rank only where the contrast is at least {CAPACITY}", CHANGES, tuned_like="seqlora", contrast=CAPACITY
    ),
    "planned-101": Method(
        "SeqLoRA, rank and penalty planned for 101", CHANGES, tuned_like="seqlora", capacity=101, planned=101
    ),
    "triggers": Method("SeqLoRA, learned triggers", CHANGES, grid=TRIGGERS, tried_on=16),
    "together": Method("one LoRA for all", TOGETHER, "lora", grid=RATES, together=True),
}
assert all(method.core in CORE for method in METHODS.values())
BOUNDED = ("seqlora", "frozen")  # whose forgetting bound is checked
