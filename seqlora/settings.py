"""What can be chosen when a concept is trained, and the named methods: ours and the baselines it is compared with.

A setting is said once, here: its default, its bounds, its help. Nodes, command line, locales and help pages take them from
`OPTIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from .errors import SeqLoRAError
from .families import BASIS_SHARE, usual

Number = int | float


@dataclass(frozen=True)
class Option:
    """A setting as people meet it. Its kind is that of the default; a choice has `choices`, a number has bounds."""

    name: str
    default: Any
    help: str
    least: Number = 0
    most: Number = 0
    step: Number = 1
    advanced: bool = True
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> None:
        """Raises SeqLoRAError for a value that this setting cannot have."""
        if self.choices:
            if value not in self.choices:
                raise SeqLoRAError(f"{self.name} is '{value}', but must be one of: {', '.join(self.choices)}")
        elif isinstance(self.default, (bool, str)):
            if not isinstance(value, type(self.default)):
                raise SeqLoRAError(
                    f"{self.name} is {value!r}, but must be {'on or off' if isinstance(self.default, bool) else 'text'}"
                )
        elif not (isinstance(value, (int, float)) and self.least <= value <= self.most):
            raise SeqLoRAError(f"{self.name} is {value}, but must be a number from {self.least:g} to {self.most:g}")
        elif isinstance(self.default, int) and value != int(value):
            raise SeqLoRAError(f"{self.name} is {value}, but must be a whole number")


def _option(default: Any, help: str, least: Number = 0, most: Number = 0, step: Number = 1, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most, "step": step, **more})


def _options(kind: type) -> dict[str, Option]:
    hints = get_type_hints(kind)
    return {
        entry.name: Option(entry.name, entry.default, **{"choices": get_args(hints[entry.name]), **entry.metadata})
        for entry in fields(kind)
    }


class _Checked:
    def __post_init__(self) -> None:
        known = OPTIONS | LIBRARY_OPTIONS
        for name, value in vars(self).items():
            option = known[name]
            option.check(value)
            # A seed of 1.0 is that of 1, also in the hash of a request.
            object.__setattr__(self, name, type(option.default)(value))


@dataclass(frozen=True)
class Settings(_Checked):
    """What decides what is learned. What is left to the model must be `resolved` before a training.

    Raises SeqLoRAError for a value out of bounds.
    """

    steps: int = _option(
        0, "Training steps, each a forward and a backward pass. 0: as many as suit the model.", 0, 1_000_000, advanced=False
    )
    batch_size: int = _option(
        0,
        "Images in a step. More is steadier, takes longer and needs more memory. 0: what suits the model.",
        0,
        64,
        advanced=False,
    )
    learning_rate: float = _option(
        0.0, "Learning rate of the coefficients. 0: what suits the model.", 0.0, 1.0, 1e-6, advanced=False
    )
    basis_learning_rate: float = _option(
        -1.0,
        f"Learning rate of the basis. -1: {BASIS_SHARE:g} times learning_rate. 0: the basis stays as it starts.",
        -1.0,
        1.0,
        1e-6,
    )
    seed: int = _option(0, "The same seed and inputs teach the same concept.", 0, 2**63 - 1, advanced=False)
    basis_init: Literal["contrastive", "pca", "random"] = _option(
        "contrastive",
        "Where the basis starts: directions that this concept uses and others do not (contrastive), those that it uses most "
        "(pca), or any (random).",
    )
    orthogonality: Literal["exact", "metric", "none"] = _option(
        "exact",
        "exact: at right angles to all earlier concepts. metric: only the interference penalty keeps them apart. none: plain "
        "LoRA.",
    )
    when_full: Literal["metric", "refuse"] = _option(
        "metric",
        "What happens where a layer has no direction left for an exactly orthogonal basis: the concept shares the layer as "
        "under metric, or training is refused.",
    )
    co_training: Literal["stochastic", "modular", "cumulative"] = _option(
        "stochastic",
        "What is on while the concept is learned: some earlier concepts at random (stochastic), none (modular) or all "
        "(cumulative).",
    )
    schedule: Literal["joint", "alternating", "finite_difference"] = _option(
        "joint",
        "joint: one step for both factors. alternating: several steps of the coefficients for each of the basis. "
        "finite_difference: a look-ahead, two passes a step.",
    )
    inner_steps: int = _option(
        4, "Steps of the coefficients for each step of the basis; used by the schedules other than joint.", 1, 100
    )
    interference_weight: float = _option(
        0.4,
        "How strongly the concept is kept from changing what the model does elsewhere, for each concept that the library is "
        "planned for. 0 turns it off.",
        0.0,
        1000.0,
        0.1,
    )
    weighting: Literal["sensitivity", "energy"] = _option(
        "sensitivity",
        "What a change costs the interference penalty: as much as the model's output feels of it (sensitivity), or as much as "
        "the layer's own output, all layers alike (energy).",
    )
    overlap: float = _option(
        0.0, "Strength of O-LoRA's soft penalty on bases that overlap, for comparisons. 0 turns it off.", 0.0, 1000.0, 0.1
    )
    trigger_vectors: int = _option(
        0,
        "How many vectors of its own the concept learns in the place of its trigger's, as textual inversion does. 0: none. "
        "Text encoders that take none are left as they are.",
        0,
        16,
    )
    trigger_learning_rate: float = _option(
        0.05, "Learning rate of the trigger's vectors, as a share of the size of the text encoder's own.", 0.0, 1.0, 0.01
    )

    def with_(self, **changes: Any) -> Settings:
        return replace(self, **changes)

    @property
    def automatic(self) -> tuple[str, ...]:
        """The names of those that are left to the model."""
        left = {"steps": 0, "batch_size": 0, "learning_rate": 0, "basis_learning_rate": -1}
        return tuple(name for name, value in left.items() if getattr(self, name) == value)

    def resolved(self, family: str) -> Settings:
        """The settings with what was left to the model as suits its family, a key of FAMILIES; others count as "other"."""
        suits = usual(family)
        rate = self.learning_rate or suits.learning_rate
        basis = float(f"{BASIS_SHARE * rate:.6g}") if self.basis_learning_rate < 0 else self.basis_learning_rate
        return self.with_(
            steps=self.steps or suits.steps,
            batch_size=self.batch_size or suits.batch_size,
            learning_rate=rate,
            basis_learning_rate=basis,
        )


_PUBLISHED = {"interference_weight": 0.0, "co_training": "modular", "trigger_vectors": 0}
METHODS: dict[str, dict[str, Any]] = {
    "seqlora": {},
    "lora": {"basis_init": "random", "orthogonality": "none", **_PUBLISHED},
    "orthogonal adaptation": {"basis_init": "random", "basis_learning_rate": 0.0, **_PUBLISHED},
    "inflora": {"basis_init": "pca", "basis_learning_rate": 0.0, **_PUBLISHED},
    "o-lora": {"basis_init": "random", "orthogonality": "none", "overlap": 0.1, **_PUBLISHED},
    "continual alternating": {"basis_init": "random", "schedule": "alternating", "inner_steps": 1, **_PUBLISHED},
    "frozen contrastive": {"basis_learning_rate": 0.0},
}


@dataclass(frozen=True)
class RunOptions(_Checked):
    """How a training is run and shown. Raises SeqLoRAError for a value out of bounds."""

    method: str = _option(
        "seqlora",
        "SeqLoRA, or a method to compare it with, such as lora. These set some of the other settings themselves.",
        choices=tuple(METHODS),
    )
    replace: bool = _option(
        False,
        "Teach a name that the library has already anew, with these settings. The old concept stays until the new one is done.",
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = _option(
        "auto", "Computes parts of the model twice to need much less memory; about a third slower. auto: on with a GPU."
    )
    checkpoint_minutes: float = _option(
        2.0,
        "Minutes between two savings of the unfinished training, from which it goes on after a crash. It is also saved when "
        "you cancel. 0: only then.",
        0.0,
        1440.0,
        0.5,
    )
    preview_every: int = _option(
        -1,
        "Steps between two previews of the concept, and of an earlier one from the same noise. -1: four in a training. "
        "0: none.",
        -1,
        1_000_000,
        advanced=False,
    )
    preview_prompt: str = _option("", "What previews show. Empty: 'a photo of {trigger} {class word}'.")


@dataclass(frozen=True)
class LibraryPlan(_Checked):
    """What a library is made for; fixed once it holds a concept. Raises SeqLoRAError for a value out of bounds."""

    rank: int = _option(
        16,
        "Most directions that a concept may use in a layer. Narrow layers give each concept less, so that all of the planned "
        "concepts find room. Fixed once it holds a concept.",
        1,
        1024,
    )
    capacity: int = _option(
        32,
        "How many concepts are planned: they share a quarter of a layer's width. More can be taught; once the rest is taken "
        "too, layers are shared softly and the report says so. Fixed once it holds a concept.",
        1,
        100_000,
    )
    targets: str = _option(
        "attention and mlp",
        "Which layers concepts change. With the MLP layers a concept is learned better and its file is larger. Fixed once it "
        "holds a concept.",
        choices=("attention", "attention and mlp"),
    )


OPTIONS: dict[str, Option] = _options(Settings) | _options(RunOptions)  # of a training
LIBRARY_OPTIONS: dict[str, Option] = _options(LibraryPlan)


def settings_of(chosen: Mapping[str, Any]) -> tuple[Settings, RunOptions]:
    """From values by name, those of the method put in; whatever is not named has its default."""

    def of(kind: type) -> dict[str, Any]:
        return {entry.name: chosen[entry.name] for entry in fields(kind) if entry.name in chosen}

    run = RunOptions(**of(RunOptions))
    return method_settings(run.method, Settings(**of(Settings))), run


def method_settings(method: str, base: Settings) -> Settings:
    """The settings `base` with what makes the named method what it is."""
    if method not in METHODS:
        raise SeqLoRAError(f"method is '{method}', but must be one of: {', '.join(METHODS)}")
    return base.with_(**METHODS[method])


def method_of(record: Mapping[str, Any]) -> str:
    """The method that taught with recorded settings: of all that fit the one that asks for most; SeqLoRA asks for nothing."""
    settings = from_record(record)
    return max((len(own), name) for name, own in METHODS.items() if own.items() <= settings.items())[1]


# What format 1 of libraries called some settings, in whose names requests are hashed for good.
NAMES_1 = {"basis_init": "basis_start", "co_training": "context", "interference_weight": "interference"}
_FREE_1 = "free"  # orthogonality="none"
_TRIGGER = ("trigger_vectors", "trigger_learning_rate")  # format 1 began without; then a concept had no vectors


def from_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record under today's names; it may lack some, and is not checked."""
    today = {old: name for name, old in NAMES_1.items()}
    found = {today.get(name, name): value for name, value in record.items()}
    if found.get("orthogonality") == _FREE_1:
        found["orthogonality"] = "none"
    return {"trigger_vectors": 0} | found


def legacy_names(settings: Settings) -> dict[str, Any]:
    """The settings under the names of format 1: what a request's hash is made of, so that old requests are found."""
    found = {NAMES_1.get(name, name): value for name, value in asdict(settings).items()}
    if settings.orthogonality == "none":
        found["orthogonality"] = _FREE_1
    return found if settings.trigger_vectors else {name: value for name, value in found.items() if name not in _TRIGGER}
