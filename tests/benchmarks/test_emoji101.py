"""The benchmark in small: what must hold in every run of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.emoji101 import bars, measures, mmdit, model, records, results, subjects, tables
from benchmarks.emoji101 import experiment as runs
from benchmarks.emoji101 import found as gathered
from benchmarks.emoji101.ablation import STRENGTHS, kind, parts
from benchmarks.emoji101.experiment import Bench
from benchmarks.emoji101.methods import METHODS
from benchmarks.emoji101.subjects import concepts
from seqlora.demo.demo_model import DemoModel
from seqlora.demo.pictures import trigger_word
from seqlora.diffusion.batches import Batches
from seqlora.lora.compose import compose
from seqlora.method.metrics import basis_error
from seqlora.training.measure import measure_concept
from seqlora.training.progress import run_to_end

CONCEPTS = 8
TUNED = {"seqlora": {"learning_rate": 2e-2, "interference_weight": 0.4}, "lora": {"learning_rate": 1e-2}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """Both methods taught and measured once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "SIZES", (1, 4, CONCEPTS))
        patch.setattr(DemoModel, "generic_captions", DemoModel.generic_captions[::8])  # to be measured on
        patch.setattr(runs, "SUBSETS", 1)
        patch.setattr(runs, "PAIRS", 2)
        patch.setattr(measures, "BASE_EMOJI", 8)
        patch.setattr(measures, "STEPS", 4)
        patch.setattr("benchmarks.emoji101.methods.BASE", METHODS["seqlora"].settings(TUNED["seqlora"]).with_(steps=16))
        folder = tmp_path_factory.mktemp("emoji101")
        bench = Bench("unet", folder / "build", folder / "results")
        chosen = {key: bench.run(key, TUNED[key], 0, CONCEPTS) for key in TUNED}
        found = {key: bench.result(run, CONCEPTS) for key, run in chosen.items()}
        for key, run in chosen.items():
            bench.file(key, run, TUNED[key], CONCEPTS)
        yield bench, chosen, found


def test_bases_are_orthogonal_and_the_sum_is_exact(small):
    bench, chosen, _ = small
    *_, lessons = chosen["seqlora"].teach()
    across, within = basis_error(lessons.concepts)
    assert across < 1e-5 and within < 1e-5
    composed = compose([(concept, 1.0) for concept in lessons.concepts])
    layer, pair = next(iter(composed.items()))
    summed = sum(c[layer].up.double() @ c[layer].basis.double().mT for c in lessons.concepts)
    assert torch.allclose(pair.up.double() @ pair.basis.double().mT, summed, atol=1e-12)


def test_crosstalk_is_below_that_of_independent_loras(small):
    _, _, found = small
    assert found["seqlora"]["crosstalk felt"] < found["lora"]["crosstalk felt"]
    assert found["seqlora"]["crosstalk"] < found["lora"]["crosstalk"]


def test_what_a_library_costs_without_one_kind_of_layer(small):
    bench, chosen, found = small
    rows = parts(bench, chosen["lora"], CONCEPTS)
    whole = found["lora"]["sizes"][str(CONCEPTS)]["prior"] / found["lora"]["prior of the base"]
    assert rows[0]["base"] == whole and rows[0]["without"] == ""
    assert {len(row["cosine"]) for row in rows} == {CONCEPTS}
    kinds = [row["without"] for row in rows[len(STRENGTHS) :]]
    layers = list(bench.model.layers("attention and mlp"))
    assert len(kinds) == len(set(kinds)) and all(sum(layer.endswith("." + k) for k in kinds) == 1 for layer in layers)
    assert all(row["cosine"] != rows[0]["cosine"] for row in rows[1:])
    assert kind("diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj") == "ff.net.0.proj"


def test_layers_of_low_contrast_get_no_rank(small, monkeypatch):
    bench, _, _ = small
    run = bench.run("contrast", TUNED["seqlora"], 0, 1)
    kinds = {kind(name) for name in run.ranks}
    assert {"attn2.to_k", "attn2.to_v"} <= kinds and not {"attn1.to_q", "attn1.to_v"} & kinds
    (lessons,) = run.teach()
    assert set(lessons.concepts[0]) == set(run.ranks)
    layer = next(name for name in run.ranks if kind(name) == "attn2.to_out.0")
    monkeypatch.setattr(runs, "CHECKED", 1)
    again = Bench("unet", bench.out)
    layers = bench.model.layers("attention and mlp")
    examples = subjects.training_examples(bench.model, subjects.tuning_concepts(1)[0], 0)
    batches = Batches(examples, bench.model.denoiser, 4, torch.Generator().manual_seed(0))
    seen = run_to_end(measure_concept(bench.model.denoiser, layers, batches))
    own, rest = (moments[layer].sketch.double() for moments in (seen, bench.prior))
    start = torch.linalg.eig(torch.linalg.solve(rest + 0.1 * rest.diagonal().mean() * torch.eye(len(rest)), own))
    best = start.eigenvectors[:, start.eigenvalues.real.argmax()].real
    assert again.contrast[layer] == pytest.approx(float(best @ own @ best / (best @ rest @ best)), rel=1e-3)


def test_a_second_base_model_is_taught_like_the_first(small, tmp_path, monkeypatch):
    torch.manual_seed(0)
    transformer = mmdit.SD3Transformer2DModel(**mmdit.CONFIG)
    save_file({name: tensor.half() for name, tensor in transformer.state_dict().items()}, tmp_path / "weights.safetensors")
    monkeypatch.setitem(model.LOADERS, "mmdit", lambda: mmdit.load_mmdit(tmp_path / "weights.safetensors"))
    bench = Bench("mmdit", tmp_path)
    *_, lessons = bench.run("seqlora", TUNED["seqlora"], 0, 2).teach()
    assert {kind(name) for name in lessons.concepts[0]} >= {"attn.to_q", "attn.add_q_proj", "ff.net.2", "ff_context.net.2"}
    assert max(basis_error(lessons.concepts)) < 1e-5
    prompt = [subjects.prompt(lessons.emoji[0])]
    bare, taught = (measures.draw(bench.model, on, prompt, 1) for on in ({}, lessons.composed()))
    assert bare.shape == (1, 1, 3, 64, 64) and not torch.equal(bare, taught)


def test_without_its_weights_the_second_base_model_says_how_to_get_them(tmp_path):
    with pytest.raises(SystemExit, match="train_mmdit"):
        mmdit.load_mmdit(tmp_path / "none.safetensors")


def test_a_setting_that_harms_the_base_model_can_be_ruled_out():
    def result(cosine: float, prior: float) -> dict:
        return {"sizes": {"12": {"cosine": [cosine], "prior": prior}}, "prior of the base": 0.5}

    tried = [
        ({"interference_weight": 1}, result(0.6, 0.4)),
        ({"interference_weight": 2}, result(0.5, 0.48)),
        ({"interference_weight": 3}, result(0.4, 0.5)),
    ]
    assert runs.best(tried) == {"interference_weight": 1}
    assert runs.best(tried, 0.95) == {"interference_weight": 2}
    assert runs.best(tried, 1.1) == {"interference_weight": 1}  # none does


def test_a_finished_run_is_only_read(small):
    bench, chosen, found = small
    before = {path: path.stat().st_mtime_ns for path in chosen["lora"].folder.iterdir()}
    assert bench.result(bench.run("lora", TUNED["lora"], 0, CONCEPTS), CONCEPTS) == found["lora"]
    assert before == {path: path.stat().st_mtime_ns for path in chosen["lora"].folder.iterdir()}


def test_the_page_has_every_figure(small, tmp_path, monkeypatch):
    """From the filed measures alone, in another place."""
    monkeypatch.setattr(tables, "SIZES", (1, 4, CONCEPTS))
    bench, _, found = small
    read = gathered.read(bench.results, "unet")
    assert list(read) == ["lora", "seqlora"] and not any(method.outdated for method in read.values())
    filed, pictures = tmp_path / "filed", tmp_path / "pictures"
    shutil.copytree(bench.results, filed)
    assert all(path.stat().st_size < 20_000 for path in filed.rglob("*-seed*"))
    pictures.mkdir()
    seen = gathered.show(found["seqlora"]["sizes"][str(CONCEPTS)]["cosine"])
    for number, architecture in enumerate(model.LOADERS, 1):
        if number > 1:
            shutil.copytree(filed / "unet", filed / architecture)
        page = results.page(filed, pictures)
        assert "{{" not in page and "nan" not in page
        assert len([line for line in page.splitlines() if "SeqLoRA (joint)" in line and f"| {seen} |" in line]) == number
        assert ("Not run yet" in page) == (number < 2)
        assert {path.name for path in pictures.glob(f"*-{architecture}-*")} == {
            f"emoji101-{architecture}-{name}.png" for name in ("identity", "crosstalk", "grid")
        }


def test_a_row_is_filed_and_replaced_without_the_others(small, tmp_path):
    bench, _, found = small
    filed = tmp_path / "filed"
    shutil.copytree(bench.results, filed)
    other = records.run_path(filed, "unet", "lora", 0, CONCEPTS)
    before = other.read_bytes()
    measured = found["seqlora"] | {"crosstalk": 0.125}
    records.write_run(filed, "unet", "seqlora", TUNED["seqlora"], 0, CONCEPTS, measured)
    read = gathered.read(filed, "unet")
    assert read["seqlora"].each("crosstalk") == [0.125] and read["seqlora"].numbers == [0]
    assert other.read_bytes() == before


def test_a_change_of_the_code_marks_the_rows_that_it_makes_stale(small, tmp_path, monkeypatch):
    bench, _, _ = small
    filed = tmp_path / "filed"
    shutil.copytree(bench.results, filed)
    monkeypatch.setitem(METHODS, "seqlora", replace(METHODS["seqlora"], changes={"weighting": "energy"}))
    read = gathered.read(filed, "unet")
    assert read["seqlora"].outdated == "weighting" and read["seqlora"].title.endswith(gathered.OUTDATED)
    assert not read["lora"].outdated
    lines = list(tables.runs(records.read_runs(filed, "unet")))
    assert [gathered.OUTDATED in line for line in lines[2:4]] == [False, True] and "| weighting |" in lines[3]
    path = records.run_path(filed, "unet", "lora", 0, CONCEPTS)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base model": "another"}))
    assert gathered.read(filed, "unet")["lora"].outdated == "base model"


def test_runs_of_other_settings_do_not_mix_in_one_row(small, tmp_path):
    bench, _, found = small
    filed = tmp_path / "filed"
    shutil.copytree(bench.results, filed)
    path = records.write_run(filed, "unet", "seqlora", TUNED["seqlora"], 1, CONCEPTS, found["seqlora"])
    assert gathered.read(filed, "unet")["seqlora"].numbers == [0, 1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hash": "of earlier code"}))
    assert gathered.read(filed, "unet")["seqlora"].numbers == [0]


def test_a_variant_of_a_row_that_was_tuned_anew_is_left_out(small, tmp_path):
    bench, _, found = small
    filed = tmp_path / "filed"
    shutil.copytree(bench.results, filed)
    for tuned, there in ((TUNED["seqlora"], True), ({"learning_rate": 1.0, "interference_weight": 0.4}, False)):
        records.write_run(filed, "unet", "metric", tuned, 0, CONCEPTS, found["seqlora"])
        assert ("metric" in gathered.read(filed, "unet")) == there


def seed_of(count: int, cosine: list[float], alone: list[float]) -> dict:
    return {"sizes": {str(count): {"cosine": cosine, "prior": 0.9}}, "alone": {"cosine": alone}, "prior of the base": 1.0}


def test_an_emoji_that_two_seeds_taught_counts_once():
    first, second = ([emoji.name for emoji in concepts(60, seed)] for seed in (0, 1))
    values = {name: number / 100 for number, name in enumerate(sorted({*first, *second}))}
    seeds = [
        seed_of(60, [values[name] + shift for name in names], [1.0] * 60) for names, shift in ((first, 0.0), (second, 1.0))
    ]
    found = gathered.Found("seqlora", {}, seeds, [0, 1], [60, 60])
    expected = {
        name: value + (name in second) * (0.5 if name in first else 1.0)  # the mean of those that taught it
        for name, value in values.items()
    }
    assert sorted(found.at(60, "cosine")) == pytest.approx(sorted(expected.values()))
    assert tables.kept(found, 60) == pytest.approx(sum(expected.values()) / len(expected))


def test_methods_are_compared_on_the_seeds_that_both_have():
    nowhere = [Path()] * 3
    ours = [seed_of(4, [value] * 4, [1.0] * 4) for value in (0.1, 0.5, 0.9)]
    theirs = [seed_of(4, [0.2] * 4, [1.0] * 4), seed_of(8, [0.2] * 8, [1.0] * 8)]
    one = gathered.Found("seqlora", {}, ours, [0, 1, 2], [4, 4, 4], nowhere)
    other = gathered.Found("lora", {}, theirs, [1, 2], [4, 8], nowhere[:2])
    assert one.shared(other, 4).numbers == [1] and one.shared(other, 4).at(4, "cosine") == pytest.approx([0.5] * 4)
    assert one.shared(other, 8).seeds == []


def test_how_far_ahead_is_told_emoji_by_emoji():
    rng = torch.Generator().manual_seed(0)
    theirs, gain = torch.randn(2, 32, generator=rng), 0.3 + 0.01 * torch.randn(2, 32, generator=rng)
    ours = [seed_of(32, row.tolist(), [1.0] * 32) for row in (*(theirs + gain), torch.full((32,), 99.0))]
    one = gathered.Found("seqlora", {}, ours, [0, 1, 2], [32] * 3, [Path()] * 3)
    other = gathered.Found(
        "lora", {}, [seed_of(32, row.tolist(), [1.0] * 32) for row in theirs], [0, 1], [32] * 2, [Path()] * 2
    )
    (row,) = list(tables.ahead({"seqlora": one, "lora": other}, [32]))[2:3]
    by_name: dict[str, list[float]] = {}
    for seed in (0, 1):
        for emoji, value in zip(concepts(32, seed), gain[seed].tolist(), strict=True):
            by_name.setdefault(emoji.name, []).append(value)
    assert f"| {tables.interval([sum(v) / len(v) for v in by_name.values()])} |" in row and "0.9" in row


def test_tenths_of_an_order_and_what_the_pictures_allow():
    assert tables.places(101) == {
        "all": slice(None),
        "first tenth": slice(0, 10),
        "middle tenth": slice(45, 55),
        "last tenth": slice(91, 101),
    }
    order = [number / 32 for number in range(32)]
    one = gathered.Found("seqlora", {}, [seed_of(32, order, order) | {"change": [2.0] * 32}], [0], [32], [Path()])
    other = gathered.Found("lora", {}, [seed_of(32, [0.0] * 32, [0.5] * 32)], [0], [32], [Path()])
    rows = list(tables.against_alone({"seqlora": one, "lora": other}))[2:-1]
    assert [row.split(" | ")[0] for row in rows] == [
        f"| 32, {name}" for name in ("all (32)", "first tenth (3)", "middle tenth (3)", "last tenth (3)")
    ]
    assert "| 96.9% |" in rows[0] and "| 0.9 | 2.00" in rows[0].replace("0.900", "0.9")
    assert "| 187.5% | +0.438" in rows[3]  # (29 + 30 + 31) / 3 / 32 over 0.5
    said = "".join(bars.bars({"seqlora": one, "lora": other}, {}, 32, {}))
    assert "| 96.9%: 0.484" in said and "(seeds: 1) | **not met** |" in said
    assert "ahead of every rival as published at 32 concepts: paired interval above 0 | +0.484" in said
    assert "met, 4 of 5 not run" in said


def test_a_figure_of_the_largest_library_is_shown(tmp_path):
    assert results.largest(tmp_path.glob("cost-*.json")) == (0, {})
    for count in (101, 32):
        records.write(tmp_path / f"cost-{count}.json", {"late": count})
    assert results.largest(tmp_path.glob("cost-*.json")) == (101, {"late": 101})


def test_of_nothing_no_share_is_kept():
    alone = [0.1, -0.1] * 8
    seeds = [seed_of(16, [0.1] * 16, alone) | {"subset pairs": {"4": [[0.1, value] for value in alone]}}]
    found = gathered.Found("seqlora", {}, seeds, [0], [16])
    assert found.kept_in(4) is None and found.kept_in(16) is None
    assert "%" not in "".join(tables.identity({"seqlora": found}, 16))
    seeds[0]["alone"]["cosine"] = [0.1, 0.3] * 8
    assert "50.0%" in "".join(tables.identity({"seqlora": found}, 16))


@pytest.mark.parametrize(("count", "student"), [(8, 2.3646), (32, 2.0395), (101, 1.9840)])
def test_intervals_are_students(count: int, student: float):
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)).tolist()
    mean, error = gathered.mean_and_error(values)
    expected = student * torch.tensor(values, dtype=torch.float64).std().item() / count**0.5
    assert error == pytest.approx(expected, rel=1e-4) and mean == pytest.approx(sum(values) / count)
    assert gathered.show([0.9, 0.8]) == "0.850 (0.800 to 0.900)"


def test_learned_triggers_are_kept_and_put_in(small):
    bench, _, _ = small
    run = bench.run("triggers", dict(METHODS["triggers"].grid[1]), 0, 1)
    (taught,) = run.teach()
    vectors, moments = taught.vectors[0]["micro"], taught.moments[0]
    (again,) = run.teach()  # from disk
    assert vectors.shape == (1, 128) and torch.equal(again.vectors[0]["micro"], vectors)
    assert all(torch.equal(again.moments[0].by_input[name].sketch, own.sketch) for name, own in moments.by_input.items())
    (emoji,) = taught.taught
    assert list(taught.triggers) == [trigger_word(emoji)]
    word = trigger_word(emoji)
    start = bench.model.own_vectors(word, 1)["micro"]
    assert not torch.allclose(vectors, start, rtol=0.01)
    drawn, bare = (
        measures.draw(bench.model, taught.composed(), [subjects.prompt(emoji)], 1, words) for words in (taught.triggers, {})
    )
    assert not torch.allclose(drawn, bare, atol=1e-3)
    (plain,) = bench.run("triggers", dict(METHODS["triggers"].grid[0]), 0, 1).teach()
    assert plain.triggers == {} and plain.vectors == [{}]
