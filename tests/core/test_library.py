"""A library on disk: what it keeps, that a failure never breaks it, and that nobody gets out of its folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import safe_open

from seqlora.errors import SeqLoRAError
from seqlora.io.atomic import write_bytes
from seqlora.io.names import checked_name, slug
from seqlora.io.safetensors_file import write_tensors
from seqlora.library import loaded, lock, view, writer
from seqlora.library.lock import LibraryLock
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.library.writer import MANIFEST
from seqlora.lora.compose import compose, parse_selection
from seqlora.method.metrics import basis_error
from seqlora.method.trained import TrainedConcept
from seqlora.settings import Settings
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, contents, relist, rewrite, small_library, small_request


@pytest.fixture(scope="module")
def model():
    return SmallModel()


@pytest.fixture(scope="module")
def original(tmp_path_factory, model):
    return small_library(tmp_path_factory.mktemp("models") / "pets", model)


# -- creating and opening


def test_create_then_open(tmp_path):
    made = Library.create(tmp_path / "new", rank=4, capacity=9, targets="attention")
    assert made == Library.open(tmp_path / "new") == Library.create(tmp_path / "new", 4, 9, "attention")
    assert (made.rank, made.capacity, made.targets, made.names, made.base) == (4, 9, "attention", [], None)


@pytest.mark.parametrize("what,wanted", [("rank", 4), ("capacity", 3), ("targets", "attention")])
def test_create_where_another_is(library, what, wanted):
    before = contents(library.path)
    given_ = {"rank": 8, "capacity": 1, "targets": "attention and mlp"} | {what: wanted}
    with pytest.raises(SeqLoRAError, match=f"'pets' exists with {what} .*, not {wanted}; set {what} to"):
        Library.create(library.path, **given_)
    assert contents(library.path) == before


@pytest.mark.parametrize("changes", [{"rank": 8}, {"capacity": 3}, {"targets": "attention and mlp"}])
def test_an_empty_library_is_made_anew(tmp_path, changes):
    given_ = {"rank": 4, "capacity": 9, "targets": "attention"}
    Library.create(tmp_path / "new", **given_)
    assert Library.create(tmp_path / "new", **given_ | changes) == Library.open(tmp_path / "new")
    made = Library.open(tmp_path / "new")
    assert {what: getattr(made, what) for what in given_} == given_ | changes


def test_a_library_whose_concepts_were_all_removed_is_empty(library, model):
    for name in library.names:
        with library.writing() as writer:
            writer.remove(name)
    remade = Library.create(library.path, 2, 5, "attention")
    assert (remade.rank, remade.targets, remade.base, remade.prior()) == (2, "attention", None, None)
    taught = run_to_end(train_steps(remade, small_request("bird"), QUICK, model)).library
    assert taught.names == ["bird"] and verify(taught.path) == []


def test_a_library_that_lost_its_list_is_not_taken_for_empty(library):
    file = library.path / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {"concepts": []}))
    with pytest.raises(SeqLoRAError, match="exists with rank 8, not 4"):
        Library.create(library.path, 4, 1, "attention and mlp")


def test_an_empty_library_is_not_made_anew_under_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    made = Library.create(tmp_path / "new", 4, 9, "attention")
    with made.writing(), pytest.raises(SeqLoRAError, match="A training is writing to library 'new'"):
        Library.create(tmp_path / "new", 8, 9, "attention")
    assert Library.open(tmp_path / "new") == made


@pytest.mark.parametrize("kind", ["file", "broken link", "loop"])
def test_what_lies_where_a_library_should_go_is_told(tmp_path, kind):
    place = tmp_path / "new"
    place.write_text("x") if kind == "file" else place.symlink_to(place if kind == "loop" else tmp_path / "nowhere")
    with pytest.raises(SeqLoRAError, match="new is a file, or a link that leads nowhere; remove it or choose another name"):
        Library.create(place, 4, 9, "attention")


@pytest.mark.parametrize("said", ["cat", "Cat", " CAT ", "\uff43at", "ca\u0301t"])
def test_a_concept_is_known_by_what_a_file_system_takes_for_its_name(library, said):
    assert library.known_as(said) == ("cat" if said != "ca\u0301t" else said)


@pytest.mark.parametrize("rank,capacity,targets", [(0, 1, "attention"), (1, 0, "attention"), (1, 1, "everything")])
def test_create_with_nonsense(tmp_path, rank, capacity, targets):
    with pytest.raises(SeqLoRAError, match="must be"):
        Library.create(tmp_path / "new", rank, capacity, targets)
    assert not list(tmp_path.iterdir())


def test_open_nothing(tmp_path):
    with pytest.raises(SeqLoRAError, match="There is no library at .*none.*create it first"):
        Library.open(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def without(manifest, key):
    return {k: v for k, v in manifest.items() if k != key}


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: "",
        lambda m: json.dumps(m)[:-20],
        lambda m: "[]",
        lambda m: "null",
        lambda m: "{}",
        lambda m: "[" * 200_000,
        lambda m: b"\xff\xfe{}",
        lambda m: without(m, "concepts"),
        lambda m: without(m, "rank"),
        lambda m: m | {"rank": "many"},
        lambda m: m | {"rank": 0},
        lambda m: m | {"targets": "everything"},
        lambda m: m | {"concepts": 5},
        lambda m: m | {"concepts": [{"name": "cat"}]},
        lambda m: m | {"concepts": [m["concepts"][0] | {"surprise": 1}]},
        lambda m: m | {"concepts": [m["concepts"][0] | {"file": 7}]},
        lambda m: m | {"concepts": [m["concepts"][0] | {"id": "../1"}]},
        lambda m: m | {"concepts": [m["concepts"][0] | {"name": ["cat"]}]},
        lambda m: m | {"concepts": [m["concepts"][0]] * 2},
        lambda m: m | {"concepts": [m["concepts"][0] | {"id": True}]},
        lambda m: m | {"concepts": [m["concepts"][0] | {"full_layers": ["nowhere"]}]},
        lambda m: m | {"concepts": [m["concepts"][0] | {"settings": {"steps": {}}}]},
        lambda m: m | {"concepts": [m["concepts"][0] | {"trigger": "x" * 1001}]},
        lambda m: m | {"rank": 10**18},
        lambda m: json.dumps(m).replace('"rank": 8', '"rank": 1' + "0" * 100),
        lambda m: json.dumps(m).replace('"rank": 8', '"rank": 1e999'),
        lambda m: m | {"surprise": [0] * 600_000},
        lambda m: m | {"base": {"family": "sd3"}},
        lambda m: m | {"base": m["base"] | {"layers": {"a": [1, -1]}}},
        lambda m: m | {"base": m["base"] | {"layout": {"family": "unet"}}},
        lambda m: m | {"base": m["base"] | {"layout": {"family": "other", "down": 1}}},
        lambda m: m | {"base": 3},
        lambda m: m | {"base": None},
    ],
)
def test_a_damaged_manifest(library, damage):
    damaged = damage(json.loads((library.path / MANIFEST).read_text()))
    if isinstance(damaged, dict):
        damaged = json.dumps(damaged)
    (library.path / MANIFEST).write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    with pytest.raises(
        SeqLoRAError, match=r"library\.json is damaged \(.*\); restore it from a copy, or rebuild it with: seqlora"
    ):
        Library.open(library.path)


def test_a_manifest_of_tomorrow(library):
    manifest = json.loads((library.path / MANIFEST).read_text())
    (library.path / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(SeqLoRAError, match="has format 99; this version reads 1"):
        Library.open(library.path)


# -- what it keeps


def test_what_is_filed_comes_back(tmp_path, model, original):
    library = Library.create(tmp_path / "pets", 8, 1, "attention and mlp")
    taught = run_to_end(train_steps(library, small_request("cat"), QUICK, model))
    reopened = Library.open(library.path)
    assert reopened.names == ["cat"] and reopened.digest == taught.library.digest
    one, again = reopened.load("cat"), original.load("cat")  # the same lesson elsewhere: the same bits
    assert all(torch.equal(a, b) for name in one for a, b in zip(one[name], again[name], strict=True))
    _, within = basis_error([one])
    assert within <= 1e-5
    assert reopened.find("cat").settings["steps"] == QUICK.steps


def test_concepts_that_fit_are_orthogonal_on_disk(original):
    assert max(basis_error([original.load(name) for name in original.names])) <= 1e-5
    assert not original.find("dog").full_layers  # 8 + 8 fit into 32


def test_moments_come_back(original):
    prior, total = original.prior(), original.moments_sum()
    assert prior.input_of == total.input_of and set(prior.by_input) == set(prior.input_of.values())
    name = "diffusion_model.blocks.1.mlp_out"
    expected = original.moments("cat")[name].sketch + original.moments("dog")[name].sketch
    torch.testing.assert_close(total[name].sketch, expected)
    assert total.output_energy[name] > 0


def test_the_file_is_an_ordinary_lora(original):
    record = original.find("dog")
    assert record.file == "concepts/0002-dog.safetensors"
    with safe_open(original.path / record.file, "pt") as file:
        about = file.metadata()
        keys = set(file.keys())
        ranks = original.ranks(original.base.layers)
        for layer, rank in ranks.items():
            up, down = file.get_tensor(f"{layer}.lora_up.weight"), file.get_tensor(f"{layer}.lora_down.weight")
            m, n = original.base.layers[layer]
            assert up.shape == (m, rank) and down.shape == (rank, n) and up.dtype == torch.float32
            assert float(file.get_tensor(f"{layer}.alpha")) == rank
        assert len(keys) == 3 * len(ranks)
    assert about["modelspec.title"] == "dog" and about["modelspec.trigger_phrase"] == "zyxdog thing"
    assert about["ss_network_dim"] == about["ss_network_alpha"] == "8"
    assert about["modelspec.architecture"] == "other/lora" and about["ss_base_model_version"] == "other"
    assert json.loads(about["seqlora"])["concepts"][0]["settings"]["steps"] == QUICK.steps
    assert about["modelspec.thumbnail"] == original.thumbnail("dog") != ""


def test_composing_from_disk(original):
    selection = parse_selection("cat: 0.5\ndog", original.names)
    found = original.compose(selection, strength=2.0)
    expected = compose([(original.load("cat"), 1.0), (original.load("dog"), 2.0)])
    assert all(torch.equal(a, b) for name in expected for a, b in zip(found[name], expected[name], strict=True))


def test_an_unknown_concept_lists_the_known(original):
    with pytest.raises(SeqLoRAError, match="'pets' has no concept 'bird'; it has: cat, dog"):
        original.load("bird")


def test_the_penalty_grows_with_the_number_of_planned_concepts(tmp_path, model):
    taught = []
    for capacity, interference in ((1, 0.4), (4, 0.1), (4, 0.4)):
        library = Library.create(tmp_path / f"library {len(taught)}", 2, capacity, "attention and mlp")
        taught.append(
            run_to_end(train_steps(library, small_request("cat"), QUICK.with_(interference_weight=interference), model)).library
        )
    one, same, stronger = (library.load("cat") for library in taught)
    assert all(torch.equal(a, b) for layer in one for a, b in zip(one[layer], same[layer], strict=True))
    assert not any(torch.equal(one[layer].up, stronger[layer].up) for layer in one)


# -- the same request again


def test_the_same_request_is_found_without_training(library, model):
    before = contents(library.path)
    forwards = []
    handle = model.denoiser.net.register_forward_hook(lambda *_: forwards.append(1))
    steps = train_steps(library, small_request("cat"), QUICK, model)
    taught = run_to_end(steps)
    handle.remove()
    assert taught.reused and taught.record == library.find("cat") and not forwards
    assert contents(library.path) == before


@pytest.mark.parametrize(
    "settings,changes", [(QUICK.with_(seed=9), {}), (QUICK, {"trigger": "abc"}), (QUICK, {"pictures": None})]
)
def test_another_request_of_the_same_name_is_refused(library, model, settings, changes):
    before = contents(library.path)
    if "pictures" in changes:
        changes = {"pictures": small_request("cat", seed=5).pictures}
    with pytest.raises(SeqLoRAError, match="has a concept 'cat' already, taught with another .*; choose another name"):
        run_to_end(train_steps(library, small_request("cat", **changes), settings, model))
    assert contents(library.path) == before


# -- failures


@pytest.mark.parametrize("last", ["moments/0003.safetensors", "concepts/0003-bird.safetensors", MANIFEST])
def test_a_failure_before_the_manifest_leaves_the_old_library(library, model, monkeypatch, last):
    """Whatever file was the last to be tried: the manifest names only whole files, and teaching again succeeds."""
    before = contents(library.path)
    written = []

    def failing(path, data):
        if path.parent.name != "checkpoints":
            written.append(str(path.relative_to(library.path)))
        if written and written[-1] == last:
            raise SeqLoRAError("disk full")
        write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_bytes", failing)
        patch.setattr("seqlora.io.safetensors_file.write_bytes", failing)
        with pytest.raises(SeqLoRAError, match="disk full"):
            run_to_end(train_steps(library, small_request("bird", 2), QUICK, model))
    assert written[-1] == last and MANIFEST not in written[:-1]
    assert before.items() <= contents(library.path).items()
    opened = Library.open(library.path)
    assert opened == library
    assert opened.load("cat") and opened.load("dog")
    taught = run_to_end(train_steps(opened, small_request("bird", 2), QUICK, model))
    assert taught.library.names == ["cat", "dog", "bird"] and taught.library.load("bird")


def test_a_cancelled_training_leaves_only_its_checkpoint(library, model):
    before = contents(library.path)
    steps = train_steps(library, small_request("bird", 2), QUICK, model)
    for _ in range(9):
        next(steps)
    steps.close()
    after = contents(library.path)
    assert before.items() <= after.items() and {name.split("/")[0] for name in after.keys() - before.keys()} <= {"checkpoints"}
    with library.writing() as free:
        assert free.library == library


@pytest.mark.parametrize("name", ["PETS", "Pets", "pet\u017f", "caf\u00e9", "cafe\u0301", "Cafe\u0301"])
def test_a_name_that_another_system_takes_for_a_library_beside_it_is_refused(tmp_path, name):
    other = "pets" if "p" in name.lower() else ("cafe\u0301" if name == "caf\u00e9" else "caf\u00e9")
    (tmp_path / other).mkdir()
    Library.create(tmp_path / "x", 4, 8, "attention").path.joinpath(MANIFEST).rename(tmp_path / other / MANIFEST)
    with pytest.raises(SeqLoRAError, match=f"There is a library '{other}' at .*; open that one or choose another name"):
        Library.create(tmp_path / name, 4, 8, "attention")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other, "x"])
    assert Library.create(tmp_path / f"{name} 2", 4, 8, "attention").names == []


def test_a_folder_that_was_deleted_meanwhile_is_made_anew_with_what_exists(library, model):
    steps = train_steps(library, small_request("bird", 2), QUICK, model)
    for _ in range(9):
        next(steps)
    shutil.rmtree(library.path)
    taught = run_to_end(steps)
    assert taught.library.names == ["bird"] and "was deleted while the concept was taught" in taught.report.note
    assert verify(library.path) == [] and taught.library.load("bird")


def test_a_folder_that_was_deleted_while_a_concept_is_taught_anew(library, model):
    steps = train_steps(library, small_request("cat", 5), QUICK, model, replace=True)
    for _ in range(9):
        next(steps)
    shutil.rmtree(library.path)
    assert run_to_end(steps).library.names == ["cat"]


def test_moments_that_a_crash_left_are_measured_anew(tmp_path, original, model):
    """G on disk without a base may be another model's."""
    path = tmp_path / "new"
    Library.create(path, 2, 4, "attention and mlp")
    shutil.copytree(original.path / "moments", path / "moments")
    wide = SmallModel(48)
    taught = run_to_end(train_steps(Library.open(path), small_request("cat"), QUICK, wide))
    assert taught.library.prior()["diffusion_model.blocks.0.attn_q"].width == 48


def test_a_write_that_fails_leaves_no_trace(tmp_path):
    (tmp_path / "file" / "in the way").mkdir(parents=True)
    with pytest.raises(SeqLoRAError, match="Could not write .*file .*; check the disk's space and permissions"):
        write_bytes(tmp_path / "file", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(SeqLoRAError, match="Could not write"):
        write_bytes(tmp_path / ("x" * 300), b"data")


def test_a_write_replaces_the_whole_file(tmp_path):
    write_bytes(tmp_path / "a" / "file", b"long before")
    write_bytes(tmp_path / "a" / "file", b"short")
    assert contents(tmp_path) == {"a/file": b"short"}


# -- one writer at a time


def test_a_second_training_waits_for_its_turn(library, model):
    """It says so, can be cancelled meanwhile, and then is taught beside what the first one filed."""
    before = contents(library.path)
    steps = train_steps(library, small_request("bird", 2), QUICK, model)
    turn = LibraryLock(library.path)
    assert turn.acquire(timeout=1)
    with library.writing(turn) as current:
        assert {next(steps).phase for _ in range(3)} == {"waiting"}
        steps.close()
        assert contents(library.path) == before
        steps = train_steps(library, small_request("bird", 2), QUICK, model)
        next(steps)
        current.add("fox", "x", "", held_by(library), {})
    taught = run_to_end(steps)
    assert taught.library.names == ["cat", "dog", "fox", "bird"] and taught.record.file == "concepts/0004-bird.safetensors"


def test_short_work_says_who_keeps_it_waiting(library, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    with library.writing():
        with pytest.raises(SeqLoRAError, match="^A training is writing to library 'pets'; wait until it ends or cancel it"):
            with library.writing():
                pass
    with library.writing() as free:
        assert free.library == library


def test_the_turn_of_a_killed_process_is_free(library):
    hold = "import sys; from pathlib import Path; from seqlora.library.lock import LibraryLock"
    hold += "; turn = LibraryLock(Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{hold}; print(turn.acquire(timeout=1), flush=True); input()", str(library.path)]
    root = str(Path(writer.__file__).parents[2])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": root}, **pipes) as other:
        try:
            assert other.stdout.readline() == "True\n"
            turn = LibraryLock(library.path)
            assert not turn.acquire(timeout=0.1)
        finally:
            other.kill()
    assert turn.acquire(timeout=5)
    with library.writing(turn) as free:
        assert free.library == library


def link_lock_elsewhere(path):
    (path / ".lock").unlink()
    (path / ".lock").symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("spoil", [shutil.rmtree, link_lock_elsewhere])
def test_there_is_no_turn_where_there_is_no_library(library, spoil):
    spoil(library.path)
    before = set(library.path.parent.iterdir())
    with pytest.raises(SeqLoRAError, match=r"There is no library at|\.lock leads out of the library's folder; remove it"):
        LibraryLock(library.path).acquire(timeout=1)
    assert set(library.path.parent.iterdir()) == before


def test_a_writer_sees_what_others_wrote(library, original):
    handle = Library.open(library.path)
    with library.writing() as current:
        current.add("bird", "x", "", held_by(original), {})
    with handle.writing() as current:
        assert handle.names == ["cat", "dog"] and current.library.names == ["cat", "dog", "bird"]


def held_by(library):
    """A TrainedConcept made of what a library holds."""
    return TrainedConcept(library.load("cat"), library.moments("cat"), [])


def test_names_differ_by_more_than_case(library):
    for name in ("cat", "CAT", " Cat ", "\uff43at", "c\u200dat"):
        with pytest.raises(SeqLoRAError, match="already; choose another name"):
            library.free_name(name)
    assert library.free_name(" cats ") == "cats"


# -- tampering

LAYER = "diffusion_model.blocks.0.attn_q"
UP, DOWN = f"{LAYER}.lora_up.weight", f"{LAYER}.lora_down.weight"


def spoil(key, change):
    def apply(tensors):
        tensors[key] = change(tensors[key])

    return apply


def move(layer, to):
    def apply(tensors):
        for key in [key for key in tensors if key.startswith(layer)]:
            tensors[key.replace(layer, to)] = tensors.pop(key)

    return apply


def add_layer():
    return {"diffusion_model.new.lora_up.weight": torch.eye(4, 2), "diffusion_model.new.lora_down.weight": torch.eye(2, 4)}


@pytest.mark.parametrize(
    "change,sentence",
    [
        (spoil(UP, lambda t: t[:-1]), f"layer {LAYER} does not fit this library's model"),
        (spoil(DOWN, lambda t: t[:, :-1]), f"layer {LAYER} does not fit this library's model"),
        (spoil(DOWN, lambda t: t[:-1]), "expected \\(m, r\\) and \\(r, n\\)"),
        (spoil(UP, lambda t: t[0]), "expected \\(m, r\\) and \\(r, n\\)"),
        (lambda t: t.pop(DOWN), "is missing beside"),
        (move(LAYER, "diffusion_model.new"), f"layer {LAYER} is missing"),
        (lambda t: t.update(add_layer()), "layer diffusion_model.new does not fit this library's model"),
        (lambda t: t.update({"text_encoder.x": torch.zeros(1)}), "is not a native LoRA key"),
        (spoil(UP, lambda t: t.double()), "has dtype torch.float64; it must be"),
        (spoil(UP, lambda t: t.half()), "has dtype torch.float16"),
        (spoil(DOWN, lambda t: t.to(torch.int8)), "has dtype"),
        (spoil(UP, lambda t: t * float("nan")), "holds values that are not numbers"),
        (spoil(DOWN, lambda t: t.index_fill(1, torch.tensor(3), float("inf"))), "holds values that are not numbers"),
        (spoil(DOWN, lambda t: t * 1.01), f"basis of layer {LAYER} is not orthonormal \\(error 2.0e-02\\)"),
        (spoil(DOWN, lambda t: t[:1].expand_as(t)), "is not orthonormal"),
        (spoil(f"{LAYER}.alpha", lambda t: t * float("nan")), "must be one finite number"),
    ],
)
def test_a_file_that_does_not_fit(library, change, sentence):
    spoilt = rewrite(library, "cat", change)
    with pytest.raises(SeqLoRAError, match=sentence) as found:
        spoilt.load("cat")
    assert "0001-cat.safetensors" in str(found.value)
    assert spoilt.load("dog")


def damage(path, data):
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change,sentence",
    [
        (
            lambda p: damage(p, p.read_bytes()[:-1] + b"?"),
            "was changed since it was written; restore it from a copy, or remove concept 'cat'",
        ),
        (lambda p: damage(p, p.read_bytes()[:100]), "was changed"),
        (lambda p: damage(p, b""), "was changed"),
        (lambda p: p.unlink(), "cannot be read .*No such file.*; restore it from a copy, or remove concept 'cat'"),
    ],
)
def test_a_changed_file(library, change, sentence):
    change(library.path / library.find("cat").file)
    with pytest.raises(SeqLoRAError, match=f"0001-cat.safetensors {sentence}"):
        library.load("cat")
    assert library.load("dog")


def test_a_file_that_is_no_safetensors(library):
    file = library.path / library.find("cat").file
    file.write_bytes(b"\x80\x04pickle")
    listed = relist(library, "cat", sha256=hashlib.sha256(b"\x80\x04pickle").hexdigest())
    with pytest.raises(SeqLoRAError, match="cat.safetensors cannot be read"):
        listed.load("cat")


def test_fp16_files_are_welcome(library):
    def halve(tensors):
        tensors.update({key: tensor.half() for key, tensor in tensors.items() if "alpha" not in key})

    assert rewrite(library, "cat", halve).load("cat")[LAYER].up.dtype == torch.float16


@pytest.mark.parametrize(
    "outside", ["../secret.safetensors", "concepts/../../secret.safetensors", "{absolute}", "concepts/link"]
)
def test_nothing_outside_the_folder_is_read(library, tmp_path, outside):
    secret = tmp_path / "secret.safetensors"
    sha256 = write_tensors(secret, {"a": torch.zeros(1)})
    os.symlink(secret, library.path / "concepts" / "link")
    listed = relist(library, "cat", file=outside.format(absolute=secret), sha256=sha256)
    with pytest.raises(SeqLoRAError, match="'pets' names a file outside its folder .*; it was tampered with"):
        listed.load("cat")


def test_damaged_moments_name_their_file(library):
    (library.path / "moments" / "0002.safetensors").write_bytes(b"nothing")
    with pytest.raises(
        SeqLoRAError, match="0002.safetensors was changed since it was written; restore it from a copy, or remove concept 'dog'"
    ):
        library.moments_sum()
    assert library.load("dog")


def test_a_concept_is_read_and_checked_once(library, monkeypatch):
    file = library.path / library.find("cat").file
    os.utime(file, (1e9, 1e9))  # long ago
    first = library.load("cat")
    monkeypatch.setattr(view, "map_tensors", None)
    again = library.load("cat")
    assert again == first and again is not first
    again.clear()  # is the caller's own
    assert library.load("cat") == first
    assert set(library.compose({"cat": 0.3})) == set(first)
    monkeypatch.undo()
    data = file.read_bytes()
    damage(file, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SeqLoRAError, match="0001-cat.safetensors was changed since it was written"):
        library.load("cat")


def test_a_new_file_is_not_taken_for_the_one_before_it(library):
    """Within a tick of the file system's clock two files may have one time."""
    file = library.path / library.find("cat").file
    now = time.time_ns()
    os.utime(file, ns=(now, now))
    library.load("cat")
    data = file.read_bytes()
    damage(file, data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(now, now))
    with pytest.raises(SeqLoRAError, match="was changed since it was written"):
        library.load("cat")


def test_a_removed_concept_is_held_open_by_nobody(library):
    file = library.path / library.find("cat").file
    os.utime(file, (1e9, 1e9))
    library.load("cat")
    assert any(key[0] == str(file) for key in loaded._kept)
    with library.writing() as writer:
        writer.remove("cat")
    assert not file.exists() and not any(key[0] == str(file) for key in loaded._kept)


@pytest.mark.parametrize("inference", [False, True])
def test_a_concept_stays_on_disk_until_it_is_used(library, inference):
    """And whoever loads it first, others can teach with it."""
    with torch.inference_mode(inference):
        pair = library.load("dog")[LAYER]
    assert not pair.up.is_inference()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or library.find("dog").file in maps.read_text()
    x = torch.randn(3, pair.basis.shape[0], requires_grad=True)
    (x @ pair.basis @ pair.up.mT).sum().backward()
    pair.up.add_(1)  # of this process alone
    assert library.without("cat").tensors(library.find("dog"))  # its hash is still right


# -- another model


def test_another_model_is_named_by_its_first_difference(original):
    layers = {name: list(shape) for name, shape in original.base.layers.items()}
    original.check_base(layers)
    second = list(layers)[1]
    with pytest.raises(SeqLoRAError, match=f"another model \\(other\\): layer {second} is 32 x 99 here, 32 x 32 there"):
        original.check_base(layers | {second: [32, 99]})
    with pytest.raises(SeqLoRAError, match=f"layer {second} is missing here, 32 x 32 there"):
        original.check_base({name: shape for name, shape in layers.items() if name != second})
    original.check_base(layers | {"new": [1, 2]})  # which of a model's layers are taught is the library's to say


# -- names

ANYTHING = st.text(st.characters(exclude_categories=()), max_size=140)
RISKY = st.lists(
    st.sampled_from(["..", ".", "/", "\\", "\u2044", "\u2215", "\uff0f", "\uff3c", "\u2024", "con", ":", "*", "a", " ", "\x00"])
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.one_of(ANYTHING, RISKY.map("".join)))
@example("\u2025")  # two dots in one character
@example("a\u2028b")  # a line end, which no selection could hold
@example("\ud800")  # half a character, which no file name can hold
@example("\U0001f600" * 64)  # more bytes than a file name may have
def test_a_name_never_escapes(tmp_path_factory, text):
    try:
        name = checked_name(text, "concept name")
    except SeqLoRAError as error:
        assert str(error).startswith("The concept name ")
        return
    root = tmp_path_factory.getbasetemp()
    assert (root / name).resolve().parent == root.resolve()
    assert checked_name(name, "concept name") == name
    assert len(name) <= 64 and len(os.fsencode(name)) <= 240
    assert parse_selection(name, [name]) == {name: 1.0} and parse_selection(f"{name}: 0.5", [name]) == {name: 0.5}
    assert json.loads(json.dumps(name, ensure_ascii=False).encode()) == name


@pytest.mark.parametrize(
    "name",
    ["", "  ", ".", "..", ".hidden", "a/b", "a\\b", "/etc", "C:x", "a\x00", "a\nb", "nul", "Con", "aux.txt", "COM1", "lpt9.png"]
    + [
        "a*",
        "a?",
        'a"',
        "a<",
        "a>",
        "a|",
        "a#b",
        "a.",
        "x" * 65,
        "\U0001f600" * 64,
        "a\u2236b",
        "a\u29f8b",
        "\u202ea",
        "\u200d..",
        "con .x",
        "a\u2044b",
        "a\uff0fb",
        "a\uff1ab",
        "\uff0e\uff0e",
        "COM\u00b9",
    ],
)
def test_names_that_are_refused(name):
    with pytest.raises(SeqLoRAError, match="^The name"):
        checked_name(name, "name")


@pytest.mark.parametrize("name", ["cat", "my cat", "cat_2-b", "caf\u00e9", "\u732b", "console", "a.b", "x" * 64, "\U0001f408"])
def test_names_that_are_fine(name):
    assert checked_name(f" {name} ", "name") == name


@given(ANYTHING)
def test_a_slug_is_plain(text):
    found = slug(text)
    assert 0 < len(found) <= 40 and set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


# -- settings


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"steps": -1}, "steps is -1, but must be a number from 0 to"),
        ({"steps": 1.5}, "steps is 1.5, but must be a whole number"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"learning_rate": 2.0}, "learning_rate is 2.0, but must be a number from 0 to 1"),
        ({"learning_rate": "fast"}, "learning_rate is fast, but must be a number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, but must be a number"),
        ({"basis_learning_rate": float("inf")}, "basis_learning_rate is inf, but must be a number"),
        ({"interference_weight": -1.0}, "interference_weight is -1.0"),
        ({"schedule": "random"}, "schedule is 'random', but must be one of: joint, alternating, finite_difference"),
        ({"orthogonality": ""}, "orthogonality is '', but must be one of"),
        ({"co_training": "none"}, "co_training is 'none'"),
        ({"basis_init": "zero"}, "basis_init is 'zero'"),
        ({"when_full": "maybe"}, "when_full is 'maybe'"),
    ],
)
def test_settings_that_make_no_sense(changes, sentence):
    with pytest.raises(SeqLoRAError, match=sentence):
        Settings(**changes)
