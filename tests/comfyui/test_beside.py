"""Compositions beside the weights, on the host's own classes: as patched weights give, exact on quantised ones, in regions."""

from __future__ import annotations

import json

import pytest

from tests.support.hosts import run_in_host

pytestmark = [pytest.mark.host, pytest.mark.slow]
FAMILIES = ["SD 1.5", "SDXL", "SD3", "Flux.1 dev", "Qwen-Image", "Wan 2.1 T2V"]
IN_REGIONS = [*FAMILIES, "Chroma"]
FORMATS = ["fp8_cast", "float8_e4m3fn", "int8_tensorwise", "mxfp8", "nvfp4"]


@pytest.fixture(scope="module")
def figures(host: object, tmp_path_factory: pytest.TempPathFactory):
    """What tests/comfyui/hostscripts/beside.py reports of each family and format."""
    asked = {"beside": FAMILIES, "regions": IN_REGIONS, "formats": FORMATS, "refused": "LTX-Video"}
    return run_in_host("beside.py", tmp_path_factory.mktemp("beside"), json.dumps(asked))


@pytest.mark.parametrize("family", FAMILIES)
def test_beside_the_weights_is_what_patched_weights_give(figures, family: str):
    found = figures[f"beside {family}"]
    assert found["changed"] > 0.01
    assert found["error"] <= 1e-5 and found["chained"] <= 1e-5 and found["upstream"] <= 1e-5
    assert found["plain_is_patched"]  # where weights are plain, they are patched


@pytest.mark.parametrize("family", ["SD3", "Flux.1 dev"])
def test_libraries_that_keep_q_k_and_v_apart_run_beside_fused_layers(figures, family: str):
    assert figures[f"beside {family}"]["apart"] <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_never_left_changed(figures, family: str):
    found = figures[f"beside {family}"]
    assert found["bare_kept"] and found["hooks_left"] == 0 and found["copies_left"] == 0 and found["untouched"]


@pytest.mark.parametrize("form", FORMATS)
def test_quantised_weights_are_served_exactly(figures, form: str):
    found = figures[form]
    assert found["beside"] and found["bare_kept"] and found["hooks_left"] == 0
    assert found["error"] <= 3e-5  # of a tenth of a concept, against the host's own bypass
    assert found["patched_error"] > 0.3  # what rounding the weights again would have cost


@pytest.mark.parametrize("family", IN_REGIONS)
def test_every_layer_gives_each_token_its_share_of_each_concept(figures, family: str):
    found = figures[f"regions {family}"]
    assert found["layers"] == found["taught"] and found["looked"] > 0
    assert found["placed"] <= 1e-6  # against float64, by the layers' names
    assert found["differs"] > 0.1 and found["bare_kept"] and found["hooks_left"] == 0


@pytest.mark.parametrize("family", IN_REGIONS)
def test_concepts_that_no_region_names_are_everywhere(figures, family: str):
    assert figures[f"regions {family}"]["everywhere"] <= 1e-5


@pytest.mark.parametrize("family", IN_REGIONS)
def test_a_text_of_another_length_beside_regions_runs(figures, family: str):
    assert figures[f"regions {family}"]["other_text"]


def test_groups_of_tokens_are_a_mask_over_all_of_them(figures):
    assert max(figures["attention"].values()) <= 1e-12


def test_a_model_whose_tokens_are_not_known_is_refused(figures):
    assert "LTXVModel" in figures["refusal"] and "leave regions out" in figures["refusal"]
