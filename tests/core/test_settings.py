"""Settings: each is said in one place, and what nobody chose is what suits the model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from seqlora.cli.main import parser
from seqlora.demo.demo_model import DemoModel
from seqlora.errors import SeqLoRAError
from seqlora.families import FAMILIES, family_of
from seqlora.library.store import Library
from seqlora.settings import METHODS, OPTIONS, RunOptions, Settings, settings_of
from seqlora.training.progress import run_to_end
from seqlora.training.result import describe_result
from seqlora.training.train import train_steps
from tests.support.small import SmallModel, small_request

ROOT = Path(__file__).parents[2]
NEITHER = {"preview_every", "preview_prompt", "gradient_checkpointing"}  # on the command line


def training_flags() -> dict[str, argparse.Action]:
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {action.dest: action for action in commands.choices["train"]._actions}


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - NEITHER))
def test_every_setting_is_a_flag_that_shows_help_and_default(name: str):
    option, flag = OPTIONS[name], training_flags()[name]
    assert flag.option_strings == [f"--{name.replace('_', '-')}"]
    assert flag.default == option.default
    assert flag.help.startswith(option.help.replace("%", "%%"))
    if not isinstance(option.default, bool):
        assert flag.help.endswith(f"Default: {option.default}.")
    assert tuple(flag.choices or ()) == option.choices


def test_no_help_is_written_twice():
    folders = ("seqlora", "nodes", "tools", "tests")
    text = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py"))
    for option in OPTIONS.values():
        assert text.count(option.help[:24]) == 1, option.name


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.name)
def test_a_default_is_within_its_bounds_and_what_is_beyond_is_not(option):
    option.check(option.default)
    if option.choices:
        beyond = ["", "no such choice", None]
    elif isinstance(option.default, bool):
        beyond = ["yes", 2, None]
    elif isinstance(option.default, str):
        beyond = [1, None]
    else:
        assert option.least <= option.default <= option.most
        beyond = [option.least - 1, option.most + 1, float("nan"), float("inf"), -float("inf"), "1", None]
    for value in beyond:
        with pytest.raises(SeqLoRAError, match=f"{option.name} is .*, but must be"):
            option.check(value)


def test_what_is_left_to_the_model_is_what_suits_its_family():
    assert set(Settings().automatic) == {"steps", "batch_size", "learning_rate", "basis_learning_rate"}
    for key, family in FAMILIES.items():
        settings = Settings().resolved(key)
        assert (settings.steps, settings.batch_size, settings.learning_rate) == family[2:5]
        assert settings.automatic == () and settings == settings.resolved("demo")
    assert Settings().resolved("never heard of") == Settings().resolved("other")
    assert Settings().resolved("sd15").basis_learning_rate == 3e-5
    assert Settings().resolved("demo").basis_learning_rate == 6e-3


def test_a_number_of_the_same_value_is_the_same_setting():
    """A seed that comes as a float, a rate that comes as a whole number."""
    same = Settings(steps=12.0, seed=1.0, learning_rate=1, interference_weight=0)  # type: ignore[arg-type]
    assert repr(same) == repr(Settings(steps=12, seed=1, learning_rate=1.0, interference_weight=0.0))


def test_what_is_chosen_stays():
    chosen = Settings(steps=7, learning_rate=1e-2, basis_learning_rate=0.0)
    assert chosen.automatic == ("batch_size",)
    settings = chosen.resolved("demo")
    assert (settings.steps, settings.learning_rate, settings.basis_learning_rate, settings.batch_size) == (7, 1e-2, 0.0, 8)
    assert Settings(learning_rate=5e-4).resolved("flux").basis_learning_rate == 1.5e-4  # goes with the rate


@pytest.mark.parametrize("method", METHODS)
def test_a_method_puts_its_own_settings_in(method: str):
    settings, run = settings_of({"method": method, "steps": 3, "replace": True})
    assert settings == Settings(steps=3).with_(**METHODS[method])
    assert run == RunOptions(method=method, replace=True)


@pytest.mark.parametrize("width,expected", [(768, "sd15"), (1024, "sd2"), (2048, "sdxl"), (64, "other")])
def test_a_unet_is_known_by_the_width_of_its_text(width: int, expected: str):
    shapes = {"a.attn1.to_k": (320, 320), "a.attn2.to_k": (320, width)}
    assert family_of({"family": "unet"}, shapes) == expected


def test_other_families_are_known_by_their_layout():
    assert [family_of({"family": name}, {}) for name in ("sd3", "flux", "other", "odd")] == ["sd3", "flux", "other", "other"]
    assert DemoModel().family == "demo"


def test_the_report_says_what_was_chosen_automatically_and_the_library_what_it_was(tmp_path: Path):
    library = Library.create(tmp_path / "lib", 2, 4, "attention and mlp")
    taught = run_to_end(train_steps(library, small_request("cat"), Settings(steps=3, learning_rate=1e-2), SmallModel()))
    told = json.loads(json.dumps(describe_result(taught)))
    assert told["chosen_automatically"] == ["batch_size", "basis_learning_rate"] and told["model_family"] == "other"
    assert (told["settings"]["batch_size"], told["settings"]["basis_learning_rate"]) == (FAMILIES["other"].batch_size, 3e-3)
    chosen = Settings(steps=3, batch_size=1, learning_rate=1e-2, basis_learning_rate=3e-3)
    assert run_to_end(train_steps(taught.library, small_request("cat"), chosen, SmallModel())).reused
