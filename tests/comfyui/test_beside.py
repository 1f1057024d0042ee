"""Compositions beside the weights, on the host's own classes: as patched weights give, and exact on quantised ones."""

from __future__ import annotations

import pytest

from tests.support.hosts import run_in_host

pytestmark = [pytest.mark.host, pytest.mark.slow]
FAMILIES = ["sd15", "sd3", "flux"]
FORMATS = ["fp8_cast", "float8_e4m3fn", "int8_tensorwise", "mxfp8", "nvfp4"]


@pytest.fixture(scope="module")
def beside(host: object, tmp_path_factory: pytest.TempPathFactory):
    """What tests/comfyui/hostscripts/beside.py reports of each family and format."""
    return run_in_host("beside.py", tmp_path_factory.mktemp("beside"), *FAMILIES, "--", *FORMATS)


@pytest.mark.parametrize("family", FAMILIES)
def test_beside_the_weights_is_what_patched_weights_give(beside, family: str):
    figures = beside[family]
    assert figures["changed"] > 0.05
    assert figures["error"] <= 1e-5 and figures["chained"] <= 1e-5 and figures["upstream"] <= 1e-5
    assert figures["plain_is_patched"]  # where weights are plain, they are patched


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_libraries_that_keep_q_k_and_v_apart_run_beside_fused_layers(beside, family: str):
    assert beside[family]["apart"] <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_never_left_changed(beside, family: str):
    figures = beside[family]
    assert figures["bare_kept"] and figures["hooks_left"] == 0 and figures["copies_left"] == 0 and figures["untouched"]


@pytest.mark.parametrize("form", FORMATS)
def test_quantised_weights_are_served_exactly(beside, form: str):
    figures = beside[form]
    assert figures["beside"] and figures["bare_kept"] and figures["hooks_left"] == 0
    assert figures["error"] <= 3e-5  # of a tenth of a concept, against the host's own bypass
    assert figures["patched_error"] > 0.3  # what rounding the weights again would have cost
