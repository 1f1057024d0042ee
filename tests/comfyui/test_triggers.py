"""Learned triggers in the real host: what a training makes of them, and what Apply, Concept Prompt and an export do with it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.support.hosts import run_in_host

pytestmark = pytest.mark.host
ENCODERS = {"demo": ["micro"], "SD3": ["clip_l", "clip_g"], "SD 1.5": ["clip_l"], "SDXL": ["clip_l", "clip_g"]}
ENCODERS |= {"Flux.1 dev": ["clip_l"]}  # of which it takes the pooled text
QUICK, CLIP = ("demo", "SD3"), ("SD 1.5", "SDXL")  # the latter have nothing else that reads text
SLOW = (*CLIP, "Flux.1 dev")
families = pytest.mark.parametrize("family", [*QUICK, *(pytest.param(family, marks=pytest.mark.exhaustive) for family in SLOW)])


@pytest.fixture(scope="module")
def ran(host: object, tmp_path_factory: pytest.TempPathFactory):
    """What tests/comfyui/hostscripts/triggers.py reports; many families in one start of the interpreter."""
    return cache(lambda *asked: run_in_host("triggers.py", tmp_path_factory.mktemp("triggers"), *asked, timeout=1200))


@pytest.fixture
def figures(ran: Any):
    return lambda family: ran(*SLOW)[family] if family in SLOW else ran(*QUICK, "reading", *CLIP)[family]


@pytest.mark.parametrize("family", CLIP)
def test_a_text_encoder_reads_vectors_where_the_trigger_stands(ran: Any, family: str):
    found = ran(*QUICK, "reading", *CLIP)[family]
    assert found["encoders"] == ENCODERS[family]
    assert found["embedding"]  # as the host itself reads them, to the bit, weights in parentheses included
    assert found["differs"] and found["other_words_kept"] and found["kept"] and found["hooks_left"] == 0
    assert found["inside"]  # so does its copy in a training
    assert found["gradient_error"] < 1e-3


@families
def test_vectors_are_learned(figures: Any, family: str):
    found = figures(family)
    assert sorted(found["vectors"]) == sorted(ENCODERS[family]) and all(shape[0] == 2 for shape in found["vectors"].values())
    assert found["moved"] > 0.05 and not any("vectors" in note for note in found["notes"])
    before, after = found["losses"]
    assert after < before


@families
def test_the_gradient_is_that_of_the_loss(figures: Any, family: str):
    """Through text encoder and model, against a central difference in single precision."""
    assert figures(family)["gradient_error"] < 0.02
    assert all(grad > 0 for grad in figures(family)["grads"].values())


@families
def test_a_word_with_its_own_vectors_means_what_it_meant(figures: Any, family: str):
    assert figures(family)["start_is_word"] < 1e-5


@families
def test_applied_the_trigger_means_its_vectors_and_other_words_what_they_meant(figures: Any, family: str):
    found = figures(family)
    assert found["applied_differs"] and found["other_words_kept"] and found["prompt"]
    assert found["handed_on"]  # where no concept with vectors is on, the same CLIP


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", CLIP)
def test_an_exported_embedding_means_the_same(figures: Any, family: str):
    assert figures(family)["embedding"]


@families
def test_previews_read_prompts_as_apply_does(figures: Any, family: str):
    assert all(figures(family)["inside"])
    assert figures(family)["previews"] == [["vosk", "zobiku"]]  # its own and those of the earlier concept


@families
def test_the_text_encoder_is_left_as_it_was(figures: Any, family: str):
    assert figures(family)["kept"]


@families
def test_a_training_that_was_stopped_goes_on_bit_for_bit(figures: Any, family: str):
    assert figures(family)["resumed"]


@families
def test_a_text_encoder_that_reads_vectors_makes_another_request(figures: Any, family: str):
    assert figures(family)["other_requests"] == [True, ["text encoder"]]
