"""What decides how a concept comes out is told apart in the real host, and what does not belong together is one sentence."""

from __future__ import annotations

import pytest

from tests.support.hosts import run_in_host

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def told(host: object, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What tests/comfyui/hostscripts/belonging.py reports."""
    return run_in_host("belonging.py", tmp_path_factory.mktemp("belonging"))


@pytest.mark.parametrize(
    "what,parts",
    [
        ("the same model loaded again", []),
        ("RescaleCFG, which a training passes by", []),
        ("a fine-tune", ["model"]),
        ("a merge", ["model"]),
        ("another compute dtype", ["model"]),
        ("a LoRA", ["model"]),
        ("another shift", ["sampling"]),
        ("another layer of the text encoder", ["text encoder"]),
        ("other options of a tokenizer", ["text encoder"]),
        ("a LoRA on the text encoder", ["text encoder"]),
        ("the same text encoder loaded again", []),
        ("another VAE", ["VAE"]),
        ("one tensor of the VAE", ["VAE"]),
        ("one tensor of the text encoder", ["text encoder"]),
        ("one tensor of the model", ["model"]),
    ],
)
def test_each_part_of_a_request_is_told_apart(told: dict, what: str, parts: list[str]):
    assert told["changes"][what] == parts


@pytest.mark.parametrize(
    "what",
    [
        "two merges",
        "two ratios of a merge",
        "two LoRAs of one name",
        "two strengths of a LoRA",
        "two alphas of a LoRA",
        "a LoRA on other rows",
    ],
)
def test_what_could_be_taken_for_each_other_is_two_requests(told: dict, what: str):
    assert told["told_apart"][what]


def test_looking_changes_nothing(told: dict):
    assert told["kept"]


@pytest.mark.parametrize(
    "what,words",
    [
        ("bypass LoRA", "The model that is connected has something put between its layers (bypass_lora), which"),
        ("bypass LoRA on the text encoder", "The text encoder that is connected has something put between its layers (bypass_"),
        ("concepts beside the weights", "The model that is connected has concepts beside its weights"),
        ("hooks on the text encoder", "The text encoder that is connected has hooks"),
        ("concepts in the weights", ""),
        ("nothing", ""),
    ],
)
def test_what_runs_beside_the_weights_is_refused_before_anything_is_done(told: dict, what: str, words: str):
    said = told["refused"][what]
    assert said.startswith(words) and bool(said) == bool(words) and "\n" not in said


@pytest.mark.parametrize(
    "what,kinds",
    [
        ("umT5 on Flux", ("wan", "flux")),
        ("T5 alone on Flux", ("pixart_t5", "flux")),
        ("SD1.5's on SDXL", ("sd1", "sdxl")),
        ("Flux's own", None),
        ("Chroma's own", None),
        ("another pack's on SDXL", None),
        ("one without a tokenizer", None),
        ("a model without a kind", None),
    ],
)
def test_a_text_encoder_of_another_kind_is_told_where_its_width_fits(told: dict, what: str, kinds: tuple[str, str] | None):
    said = told["kinds"][what]
    if kinds is None:
        assert said == ""
    else:
        assert said.startswith(
            "The text encoder was loaded for another kind of model ({}) than this one ({}): its".format(*kinds)
        )


@pytest.mark.parametrize("what", ["named", "written out", "preview", "preview of an earlier one"])
def test_parentheses_of_a_trigger_reach_the_text_encoder_as_text(told: dict, what: str):
    """The same tokens as its words alone have, each of weight 1."""
    assert told["tokens"][what]


def test_a_words_pieces_are_the_tokenizers(told: dict):
    """CLIP knows dogs, and takes zorv apart; a word that stands twice counts twice; what is not the host's own is not known."""
    counts = told["pieces"]
    assert counts["dog CLIP"] == counts["dog T5"] == 1 and counts["dogdog"] == 2
    assert 2 <= counts["zorv CLIP"] <= counts["zorv T5"] <= 4
    assert counts["none"] == counts["demo"] == 0


def test_quantised_weights_are_told_apart_without_unpacking_them(told: dict):
    assert told["quantised"] == [True, False, False]
