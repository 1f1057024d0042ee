"""Every family of text-to-image model that the host loads, as a tiny random instance of the host's own classes: what is taught
is what is applied, and nothing of it stays.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.support.families import ALWAYS, NAMES, QUANTISED
from tests.support.hosts import run_in_host

pytestmark = pytest.mark.host
families = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.exhaustive) for name in NAMES]
)


@pytest.fixture(scope="module")
def tried(host: object, tmp_path_factory: pytest.TempPathFactory):
    """What tests/comfyui/hostscripts/families.py reports of a family; many in one start of the interpreter."""

    @cache
    def group(names: tuple[str, ...]) -> dict[str, Any]:
        return run_in_host("families.py", tmp_path_factory.mktemp("families"), *names, timeout=1800)

    others = tuple(name for name in NAMES if name not in ALWAYS)

    def of(family: str) -> dict[str, Any]:
        figures = group(ALWAYS if family in ALWAYS else others)[family]
        assert "failed" not in figures, figures["failed"]
        return figures

    return of


@families
def test_a_concept_is_learned(tried, family: str):
    figures = tried(family)
    assert figures["finite"] and figures["with_concept"] < figures["bare"]


@families
def test_gradient_checkpointing_changes_nothing_but_memory(tried, family: str):
    assert tried(family)["checkpointing_error"] <= 1e-5


@families
def test_what_is_applied_is_what_was_taught(tried, family: str):
    figures = tried(family)
    assert figures["applied_error"] <= 1e-4 and figures["beside_error"] <= 1e-4
    rounding = 0.5 if family in QUANTISED else 1e-4
    assert all(error is None or error <= rounding for error in figures["exports"].values())


@families
def test_nothing_stays_in_the_model(tried, family: str):
    figures = tried(family)
    assert figures["outputs_kept"] and figures["removed_exactly"] and figures["own_weights"]
    assert figures["hooks_left"] == 0 and figures["in_training"] is False


def test_layers_that_take_no_part_are_left_out(tried):
    assert tried("Qwen-Image")["left_out"] == 4  # what the last block makes of the text is read by nobody
    assert tried("Z-Image Omni")["left_out"] == 5  # those that pictures would enter
