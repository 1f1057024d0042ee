"""The benchmark in small: what must hold in every run of it."""

import pytest
import torch

from benchmarks.emoji101 import measures, results, runs
from benchmarks.emoji101.methods import METHODS
from benchmarks.emoji101.runs import Bench
from seqlora.composition import compose
from seqlora.metrics import basis_error

CONCEPTS = 8
TUNED = {"seqlora": {"learning_rate": 2e-2, "interference": 0.4}, "lora": {"learning_rate": 1e-2}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """Both methods taught and measured once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "SIZES", (1, 4, CONCEPTS))
        patch.setattr(runs, "SUBSETS", 1)
        patch.setattr(runs, "PAIRS", 2)
        patch.setattr(measures, "BASE_EMOJI", 8)
        patch.setattr(measures, "STEPS", 4)
        patch.setattr("benchmarks.emoji101.methods.BASE", METHODS["seqlora"].settings(TUNED["seqlora"]).with_(steps=16))
        bench = Bench("unet", tmp_path_factory.mktemp("emoji101"))
        chosen = {key: bench.run(key, TUNED[key], 0, CONCEPTS) for key in TUNED}
        found = {key: bench.result(run, CONCEPTS) for key, run in chosen.items()}
        for key, run in chosen.items():
            bench.note(key, run, TUNED[key], CONCEPTS)
        yield bench, chosen, found


def test_bases_are_orthogonal_and_the_sum_is_exact(small):
    bench, chosen, _ = small
    *_, lessons = chosen["seqlora"].teach()
    across, within = basis_error(lessons.concepts)
    assert across < 1e-5 and within < 1e-5
    composed = compose([(concept, 1.0) for concept in lessons.concepts])
    layer, pair = next(iter(composed.items()))
    summed = sum(c[layer].A.double() @ c[layer].B.double().mT for c in lessons.concepts)
    assert torch.allclose(pair.A.double() @ pair.B.double().mT, summed, atol=1e-12)


def test_crosstalk_is_below_that_of_independent_loras(small):
    _, _, found = small
    assert found["seqlora"]["crosstalk felt"] < found["lora"]["crosstalk felt"]
    assert found["seqlora"]["crosstalk"] < found["lora"]["crosstalk"]


def test_a_finished_run_is_only_read(small):
    bench, chosen, found = small
    before = {path: path.stat().st_mtime_ns for path in chosen["lora"].folder.iterdir()}
    assert bench.result(bench.run("lora", TUNED["lora"], 0, CONCEPTS), CONCEPTS) == found["lora"]
    assert before == {path: path.stat().st_mtime_ns for path in chosen["lora"].folder.iterdir()}


def test_the_page_has_every_figure(small, tmp_path, monkeypatch):
    bench, _, found = small
    monkeypatch.setattr(results, "SIZES", (1, 4, CONCEPTS))
    read = results.read(bench.out, "unet")
    assert list(read) == ["lora", "seqlora"]
    page = results.page(bench.out, "unet", tmp_path)
    assert "{{" not in page and "nan" not in page
    seen = found["seqlora"]["sizes"][str(CONCEPTS)]["cosine"]
    assert results.show(seen) in page
    assert {path.name for path in tmp_path.iterdir()} == {
        f"emoji101-unet-{name}.png" for name in ("identity", "crosstalk", "grid")
    }
