"""`seqlora report`: every figure of it against dense matrices built from a real library's files."""

import json
import re

import pytest
import torch

from seqlora.cli.main import main
from seqlora.diffusion.batches import Batches, Examples
from seqlora.errors import SeqLoRAError
from seqlora.library.store import Library
from seqlora.library.view import LibraryView
from seqlora.method.bound import check_bound, forgetting_bound
from seqlora.report.report import kind_of, library_report
from seqlora.settings import Settings
from seqlora.training.measure import measure
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, full_library, small_request

DELTA, CONSTANT = 0.1, 1.2
STRENGTHS = {"cat": 1.0, "dog": 0.5, "owl": -2.0}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Four concepts fill the layers of width 32, so the owl's bases there are not orthogonal to theirs."""
    model = SmallModel()
    library = full_library(tmp_path_factory.mktemp("report") / "zoo", model)
    return run_to_end(train_steps(library, small_request("owl", 7), QUICK, model)).library


def dense(library, selection):
    """dW of each concept on every layer, and C of each concept and of generic captions: all m x n and n x n, float64."""
    changes = [
        {layer: s * A.double() @ B.double().mT for layer, (A, B) in library.load(name).items()} for name, s in selection.items()
    ]
    moments = [library.moments(name) for name in selection]
    return changes, moments, library.prior()


def energy(W, moments, layer):
    return float((W @ moments[layer].sketch.double() @ W.mT).trace())


def test_what_a_layer_needed_makes_room_for_the_next(library, monkeypatch):
    """Memory does not grow with the layers: of no moment a factor is kept."""
    given = []

    def noted(method):
        def call(self, *args, **more):
            given.append(method(self, *args, **more))
            return given[-1]

        return call

    monkeypatch.setattr(LibraryView, "moments", noted(LibraryView.moments))
    monkeypatch.setattr(LibraryView, "prior", noted(LibraryView.prior))
    library_report(library, STRENGTHS, DELTA, CONSTANT)
    assert len(given) == 4
    assert all(moment._factor is None for moments in given for moment in moments.by_input.values())


@pytest.mark.parametrize("names", [["cat", "dog", "owl"], ["owl", "cat"], ["dog"]], ids="+".join)
def test_every_figure_is_that_of_the_dense_matrices(library, names):
    selection = {name: STRENGTHS[name] for name in names}
    changes, moments, prior = dense(library, selection)
    found = library_report(library, selection, DELTA, CONSTANT)
    assert (found["library"], found["delta"], found["sub_gaussian_constant"]) == ("zoo", DELTA, CONSTANT)
    assert found["layers"] == len(changes[0]) == 8
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["overlap"]) == len(found["crosstalk"]) == len(names)
    for j, (name, entry) in enumerate(zip(names, found["concepts"], strict=True)):
        expected, bounds = {}, {}
        output = moments[j].output_energy
        for layer in changes[j]:
            M = sum((c[layer] for i, c in enumerate(changes) if i != j), torch.zeros_like(changes[j][layer]))
            sigma = M @ moments[j][layer].sketch.double() @ M.mT
            expected[layer] = float(sigma.trace())
            norms = float(torch.linalg.matrix_norm(sigma)), float(torch.linalg.matrix_norm(sigma, 2))
            bounds[layer] = forgetting_bound(expected[layer], *norms, DELTA, CONSTANT)
        own = sum(energy(W, moments[j], layer) for layer, W in changes[j].items())
        whole = sum(output.values())
        assert (entry["name"], entry["strength"], entry["rank"]) == (name, STRENGTHS[name], 8)
        assert entry["disturbance"] == pytest.approx(sum(expected.values()) / own, rel=1e-5)
        assert entry["disturbance_bound"] == pytest.approx(sum(bounds.values()) / own, rel=1e-5)
        assert entry["disturbance_of_output"] == pytest.approx(sum(expected.values()) / whole, rel=1e-5)
        assert entry["disturbance_bound_of_output"] == pytest.approx(sum(bounds.values()) / whole, rel=1e-5)
        worst = max(bounds, key=lambda layer: bounds[layer] / output[layer])
        assert entry["worst_layer"] == (worst if len(names) > 1 else None)
        assert entry["worst_layer_bound_of_output"] == pytest.approx(bounds[worst] / output[worst], rel=1e-5)
        on_prior = sum(energy(W, prior, layer) for layer, W in changes[j].items()) / sum(prior.output_energy.values())
        assert entry["prior_disturbance"] == pytest.approx(on_prior, rel=1e-5)
        assert entry["change_norm"] == pytest.approx(sum(float(W.norm() ** 2) for W in changes[j].values()) ** 0.5, rel=1e-5)
        assert len(entry["full_layers"]) == (6 if name == "owl" else 0)


def test_a_concept_is_alone_without_division_by_zero(library):
    (entry,) = library_report(library, {"cat": 1.0})["concepts"]
    assert entry["disturbance"] == entry["disturbance_bound"] == entry["worst_layer_bound_of_output"] == 0


def test_capacity_is_counted_over_the_whole_library(library):
    """Rank 8 in a library that was planned for one: widths of 32 are full after four concepts, widths of 64 take eight."""
    found = library_report(library, {"cat": 1.0})["capacity"]
    assert (found["concepts"], found["planned"]) == (5, 1)
    assert {group["kind"] for group in found["groups"]} == {"attention", "mlp"}
    assert sum(group["layers"] for group in found["groups"]) == len(library.base.layers)
    for group in found["groups"]:
        assert group["rank"] == 8
        assert (group["used"], group["room"]) == {32: (1.0, 0), 64: (0.625, 3)}[group["width"]]


@pytest.mark.parametrize(
    "layer, kind",
    [
        ("input_blocks.3.1.transformer_blocks.0.attn1.to_q", "self attention"),
        ("input_blocks.3.1.transformer_blocks.0.attn2.to_out.0", "cross attention"),
        ("input_blocks.3.1.transformer_blocks.0.ff.net.0.proj", "mlp"),
        ("input_blocks.3.1.proj_in", "projections"),
        ("double_blocks.0.img_attn.qkv", "attention"),
        ("double_blocks.0.txt_mlp.2", "mlp"),
        ("single_blocks.7.linear1", "attention and mlp in one"),
        ("blocks.3.cross_attn.k", "cross attention"),
        ("blocks.3.self_attn.k", "self attention"),
    ],
)
def test_layers_are_grouped_by_what_they_do(layer, kind):
    assert kind_of(f"diffusion_model.{layer}") == kind


def test_only_the_selected_files_are_read(library, tmp_path):
    before = library_report(library, {"cat": 1.0, "owl": 1.0})
    copy = tmp_path / "zoo"
    for folder in ("concepts", "moments"):
        (copy / folder).mkdir(parents=True)
        for file in (library.path / folder).iterdir():
            if not file.name.startswith("0002"):
                (copy / folder / file.name).write_bytes(file.read_bytes())
    (copy / "library.json").write_bytes((library.path / "library.json").read_bytes())
    assert library_report(Library.open(copy), {"cat": 1.0, "owl": 1.0}) == before
    with pytest.raises(SeqLoRAError, match="cannot be read"):
        library_report(Library.open(copy), {"dog": 1.0})


def test_it_refuses_before_it_reads(library, tmp_path):
    empty = Library.create(tmp_path / "none", rank=2, capacity=2, targets="attention")
    with pytest.raises(SeqLoRAError, match="No concept is selected"):
        library_report(empty, {})
    with pytest.raises(SeqLoRAError, match="delta is 2"):
        library_report(library, {"nobody": 1.0}, delta=2)
    with pytest.raises(SeqLoRAError, match="constant is 0.5"):
        library_report(library, {"nobody": 1.0}, constant=0.5)


def test_the_command_prints_and_writes_it(library, tmp_path, capsys):
    file = tmp_path / "new" / "report.json"
    options = ["--delta", "0.2", "--sub-gaussian-constant", "1.5", "--json", str(file)]
    assert main(["report", str(library.path), "cat", "owl: -2", *options]) == 0
    written = json.loads(file.read_text())
    assert written == library_report(library, {"cat": 1.0, "owl": -2.0}, 0.2, 1.5)
    printed = capsys.readouterr().out
    for entry in written["concepts"]:
        (line,) = (row for row in printed.splitlines() if re.match(rf" *{entry['name']} +8 ", row))
        assert f"{entry['disturbance_bound']:.4f}" in line and entry["worst_layer"] in line
    assert main(["report", str(library.path), "--delta", "1"]) == 1
    assert "delta is 1" in capsys.readouterr().err


def test_plain_lora_has_no_prior_and_says_so(tmp_path, capsys):
    """The library's layers of width 32 have rank 8, those of width 64 have 12."""
    library = Library.create(tmp_path / "plain", rank=12, capacity=1, targets="attention and mlp")
    settings = QUICK.with_(orthogonality="none", basis_init="random", interference_weight=0.0, co_training="modular")
    library = run_to_end(train_steps(library, small_request("cat"), settings, SmallModel())).library
    (entry,) = library_report(library, {"cat": 1.0})["concepts"]
    assert (entry["prior_disturbance"], entry["rank"]) == (None, 12)
    assert main(["report", str(library.path)]) == 0
    assert re.search(r" cat .* - ", " " + capsys.readouterr().out.replace("\n", "\n "))


def test_real_activations_keep_to_the_bound(tmp_path):
    """The demo model and two emoji taught briefly. Unseen rows of the first keep to the bound where its moments come from other
    unseen pictures; with the stored moments, which the second emoji was trained against, they do once K is calibrated."""
    pytest.importorskip("diffusers")
    from seqlora.demo.demo_model import DemoModel
    from seqlora.demo.run_demo import demo_concepts, request_of

    model, emoji = DemoModel(), demo_concepts(2, 0)
    model.generic_captions = model.generic_captions[:8]
    library = Library.create(tmp_path / "emoji", rank=4, capacity=8, targets="attention")
    settings = Settings(steps=6, batch_size=4, learning_rate=1e-2, basis_learning_rate=3e-3)
    for one in emoji:
        library = run_to_end(train_steps(library, request_of(one, 3), settings, model)).library
    concepts = [library.load(name) for name in library.names]
    layers = model.layers(library.targets)

    def unseen(seed):
        lesson = request_of(emoji[0], 16, seed)
        examples = Examples(model.encode_pictures(lesson.pictures), model.encode_captions(lesson.captions))
        batches = Batches(examples, model.denoiser, 4, torch.Generator().manual_seed(seed))
        return [batches.next() for _ in range(6)]

    some, others = unseen(50), unseen(99)
    stored, fresh = library.moments(emoji[0].name), run_to_end(measure(model.denoiser, layers, some, len(some)))

    def checked(batches, moments, constant=1.0):
        found = check_bound(model.denoiser, layers, batches, concepts, 0, moments, constant=constant)
        assert set(found) == set(layers)
        within = sum(check.rows * check.within for check in found.values()) / sum(check.rows for check in found.values())
        return found, within

    found, within = checked(others, fresh)
    assert within >= 0.95
    assert all(0.6 < check.of_trace < 1.6 and check.of_bound > 0.05 for check in found.values())
    needed = max(check.constant for check in checked(some, stored)[0].values())
    assert checked(others, stored, max(1.0, needed))[1] >= 0.95
