"""The phases of a training are the same wherever they are known."""

import json
import re

import pytest

from seqlora.training.progress import Phase
from tools.update_locales import LOCALES, ROOT


def test_the_editor_knows_which_phases_are_not_the_end():
    text = (ROOT / "web" / "training" / "state.mjs").read_text(encoding="utf-8")
    found = re.search(r"const RUNNING = (\[.*\])", text)
    assert found and json.loads(found[1].replace("'", '"')) == [phase.value for phase in Phase if phase.runs]


@pytest.mark.parametrize("told", ["phase", "news"])
def test_every_phase_has_its_words(told: str):
    words = json.loads((LOCALES / "en" / "main.json").read_text(encoding="utf-8"))["seqlora"]["panel"][told]
    assert words.keys() == {"kept", "hardly", "spoilt", *(phase.value for phase in Phase)}  # how it finished is told apart
