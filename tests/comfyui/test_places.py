"""Where libraries are looked for and made, with the host's own reading of extra_model_paths.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import run_in_host

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def told(host: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("places")
    return run_in_host("places.py", folder) | {"folder": str(folder)}


def test_models_seqlora_comes_first_unless_another_place_is_the_default(told: dict[str, Any]):
    assert told["plain"] == told["loras marked"] == ["models/seqlora", "nas/libraries"]
    assert told["marked"] == ["other/libraries", "models/seqlora", "nas/libraries"]
    assert told["two marked"] == ["nas/libraries", "other/b", "other/a", "models/seqlora"]
    assert told["own marked"] == ["nas/libraries", "models/seqlora"]
    assert told["twice marked"] == ["nas/libraries", "models/seqlora", "other/libraries"]


def test_a_library_is_opened_where_it_is_and_a_new_one_goes_to_the_first_place(told: dict[str, Any]):
    assert told["existing"] == "nas/libraries/shared" and told["new"] == "models/seqlora/new"


def test_the_same_name_in_two_places_is_told(told: dict[str, Any]):
    remark = f"There is another library 'shared' at {told['folder']}/nas/libraries; rename one of the folders to use both."
    assert told["same name"] == remark and remark in told["log"]
    assert told["first wins"] == "models/seqlora/shared"


def test_a_name_with_decomposed_letters_is_listed_and_found(told: dict[str, Any]):
    names, place = told["composed"]
    assert names == ["caf\u00e9", "shared"] and place == "models/seqlora/cafe\u0301"


def test_a_name_that_people_take_for_another_library_is_refused_wherever_that_is(told: dict[str, Any]):
    cased, composed, wide = told["taken for the same"]
    assert cased.startswith(f"There is a library 'shared' at {told['folder']}/") and "many systems take for 'SHARED'" in cased
    assert "many systems take for 'Caf\u00e9'" in composed and "There is a library 'shared'" in wide


def test_a_library_in_other_letters_is_hidden_too_and_told(told: dict[str, Any]):
    assert told["composed twice"].startswith("There is another library 'caf\u00e9' at ")


def test_a_default_that_cannot_be_written_to_is_passed_over(told: dict[str, Any]):
    assert told["unwritable default"] == ["models/seqlora/new", "models/seqlora/shared"]


def test_a_place_that_cannot_be_written_to_is_told_and_new_libraries_go_to_the_next(told: dict[str, Any]):
    places, new = told["unwritable"]
    assert places == ["file/seqlora", "nas/libraries"] and new == "nas/libraries/new"
    assert [line for line in told["log"] if "cannot be written to" in line and "file/seqlora" in line]
