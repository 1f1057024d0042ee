"""Removing, renaming, replacing, verifying, repairing and copying: nothing that was taught is ever lost."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from seqlora.cli.main import main
from seqlora.errors import SeqLoRAError
from seqlora.library import lock, writer
from seqlora.library.copy import copy
from seqlora.library.repair import repair
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.library.writer import MANIFEST, LibraryWriter
from seqlora.method.metrics import basis_error
from seqlora.method.trained import TrainedConcept
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, contents, full_library, relist, rewrite, small_request

NAMES = ["cat", "dog", "fox"]


@pytest.fixture(scope="module")
def model():
    return SmallModel()


@pytest.fixture(scope="module")
def original(tmp_path_factory, model):
    """Three concepts, all orthogonal: rank 4 of 32 for each."""
    library = Library.create(tmp_path_factory.mktemp("models") / "pets", 4, 8, "attention and mlp")
    for seed, name in enumerate(NAMES):
        library = run_to_end(train_steps(library, small_request(name, seed), QUICK, model)).library
    return library


def tensors_of(library, name):
    return {f"{layer} {i}": tensor for layer, pair in library.load(name).items() for i, tensor in enumerate(pair)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def taught_beside(library, model, name, seed):
    """What `add(..., replaces=name)` takes: a new version, taught beside all the others."""
    from seqlora.lora.targets import layer_shapes
    from seqlora.training.trainer import train_concept
    from tests.support.small import small_examples

    layers = model.layers(library.targets)
    others = library.without(name)
    earlier = [others.load(other) for other in others.names]
    ranks = library.ranks(layer_shapes(layers))
    settings = QUICK.with_(seed=seed)
    steps = train_concept(
        model.denoiser, layers, small_examples(seed), settings, ranks, earlier, library.prior(), others.moments_sum()
    )
    return run_to_end(steps)


# -- remove, rename, replace


def test_what_was_taught_is_fine(original):
    assert verify(original.path) == []
    assert repair(original.path) == (original, [])


def test_removing_is_exact(library):
    before = contents(library.path)
    left = LibraryWriter(library).remove("dog")
    gone = {"concepts/0002-dog.safetensors", "moments/0002.safetensors"}
    after = contents(library.path)
    assert Library.open(library.path) == left and left.names == ["cat", "fox"]
    assert after.keys() == before.keys() - gone
    assert all(after[name] == before[name] for name in after if name != MANIFEST)
    assert verify(library.path) == []


def test_files_are_deleted_only_after_the_manifest_is_written(library, monkeypatch):
    before = contents(library.path)

    def full(path, data):
        raise SeqLoRAError("disk full")

    monkeypatch.setattr(writer, "write_bytes", full)
    for change in (lambda: LibraryWriter(library).remove("dog"), lambda: LibraryWriter(library).rename("dog", "hound")):
        with pytest.raises(SeqLoRAError, match="disk full"):
            change()
        left = contents(library.path)
        left.pop("concepts/0002-hound.safetensors", None)  # complete, but not listed
        assert left == before


def test_a_damaged_concept_can_be_removed(library):
    (library.path / library.find("dog").file).unlink()
    (library.path / "moments" / "0002.safetensors").write_bytes(b"?")
    assert LibraryWriter(library).remove("dog").names == ["cat", "fox"] and verify(library.path) == []


@pytest.mark.parametrize("file", ["../secret", "{secret}", "concepts/../../secret", "moments/base.safetensors", "library.json"])
def test_a_tampered_record_deletes_nothing_else(library, tmp_path, file):
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    left = LibraryWriter(relist(library, "dog", file=file.format(secret=secret))).remove("dog")
    assert left.names == ["cat", "fox"] and secret.exists() and left.prior()


def test_removing_does_not_follow_a_link_out(library, tmp_path):
    shutil.move(library.path / "moments", tmp_path / "moments")
    (library.path / "moments").symlink_to(tmp_path / "moments")
    before = contents(tmp_path / "moments")
    assert LibraryWriter(library).remove("dog").names == ["cat", "fox"]
    assert contents(tmp_path / "moments") == before


@pytest.mark.parametrize("new", ["hound", "Dog", "dog 2", "\u732b"])
def test_renaming_changes_only_the_name(library, new):
    tensors, request = tensors_of(library, "dog"), library.find("dog").request
    renamed = LibraryWriter(library).rename("dog", f" {new} ")
    assert Library.open(library.path) == renamed and renamed.names == ["cat", new, "fox"]
    assert same(tensors_of(renamed, new), tensors)
    assert renamed.find(new).request == request and not (library.path / "concepts" / "0002-dog.safetensors").exists()
    assert verify(library.path) == []
    assert LibraryWriter(renamed).rename(new, "dog").names == NAMES and verify(library.path) == []


def test_a_rename_composes_accents(library):
    assert LibraryWriter(library).rename("dog", "cafe\u0301").names[1] == "caf\u00e9"


@pytest.mark.parametrize("new", ["cat", "CAT", "\uff43at", "", "../x", "a/b", "con", ".x", "x" * 65])
def test_a_name_that_is_taken_or_unsafe_is_refused(library, new):
    before = contents(library.path)
    with pytest.raises(SeqLoRAError, match="already; choose another name|^The concept name"):
        LibraryWriter(library).rename("dog", new)
    assert contents(library.path) == before


def test_a_new_version_replaces_the_old_when_it_is_complete(library, model):
    trained = taught_beside(library, model, "cat", 9)
    with library.writing() as current:
        replaced = current.add(
            "cat", "zyx", "thing", trained, {"orthogonality": "exact"}, thumbnail=library.thumbnail("cat"), replaces="cat"
        )
    assert replaced.names == ["dog", "fox", "cat"] and replaced.find("cat").id == 4
    assert Library.open(library.path) == replaced and not (library.path / "concepts" / "0001-cat.safetensors").exists()
    assert max(basis_error([replaced.load(name) for name in replaced.names])) <= 1e-5
    assert verify(library.path) == []


def test_teaching_anew_replaces_and_is_found_again(library, model):
    lesson = small_request("cat", 9)
    with pytest.raises(SeqLoRAError, match="has a concept 'cat' already"):
        run_to_end(train_steps(library, lesson, QUICK, model))
    steps = train_steps(library, lesson, QUICK, model, replace=True)
    for _ in range(12):
        next(steps)
    steps.close()
    assert Library.open(library.path) == library
    taught = run_to_end(train_steps(library, lesson, QUICK, model, replace=True))
    assert taught.library.names == ["dog", "fox", "cat"] and taught.report.resumed_at > 0
    assert max(basis_error([taught.library.load(name) for name in NAMES])) <= 1e-5 and verify(library.path) == []
    assert run_to_end(train_steps(library, lesson, QUICK, model, replace=True)).reused
    new = run_to_end(train_steps(library, small_request("owl", 4), QUICK, model, replace=True))  # nothing there to replace
    assert new.library.names == ["dog", "fox", "cat", "owl"]


def test_a_new_version_finds_the_room_of_the_old(tmp_path, model):
    library = full_library(tmp_path / "full", model)
    taught = run_to_end(train_steps(library, small_request("cat", 9), QUICK, model, replace=True))
    assert taught.library.names == ["dog", "elk", "fox", "cat"] and not taught.record.full_layers and verify(library.path) == []


def test_a_concept_beyond_the_plan_is_told_before_it_is_taught(tmp_path, model):
    library = Library.create(tmp_path / "one", rank=4, capacity=1, targets="attention and mlp")
    planned = run_to_end(train_steps(library, small_request("cat"), QUICK, model))
    again = run_to_end(train_steps(planned.library, small_request("cat", 1), QUICK, model, replace=True))
    assert not planned.report.note and not again.report.note
    told: list[str] = []
    beyond = run_to_end(
        train_steps(again.library, small_request("dog"), QUICK, model), lambda progress: told.append(progress.note)
    )
    assert "concept 2 of a library planned for 1" in told[0] and beyond.report.note == told[0]


def test_a_replacement_that_fails_keeps_the_old(library, monkeypatch):
    trained = TrainedConcept(library.load("cat"), library.moments("cat"), [])

    def full(path, data):
        raise SeqLoRAError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_bytes", full)
        with pytest.raises(SeqLoRAError, match="disk full"):
            LibraryWriter(library).add("cat", "zyx", "", trained, {}, replaces="cat")
    assert Library.open(library.path) == library and library.load("cat")
    repaired, done = repair(library.path)
    assert repaired == library and verify(library.path) == [] and any("another version of 'cat'" in line for line in done)


def test_what_does_not_fit_is_not_filed(library):
    pairs = library.load("cat")
    pairs.popitem()
    with pytest.raises(SeqLoRAError, match="'bird' has other layers or ranks than library 'pets'; it was not filed"):
        LibraryWriter(library).add("bird", "x", "", TrainedConcept(pairs, library.moments("cat"), []), {})


def test_composing_opens_only_the_selected_files(library):
    for record in library.concepts:
        if record.name != "dog":
            (library.path / record.file).unlink()
    shutil.rmtree(library.path / "moments")
    assert Library.open(library.path).compose({"dog": 1.0})


# -- verify


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


CONCEPT, MOMENTS = "concepts/0002-dog.safetensors", "moments/0002.safetensors"


@pytest.mark.parametrize("file", [CONCEPT, MOMENTS, "moments/base.safetensors"])
@pytest.mark.parametrize("spoil", [truncated, flipped, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_every_damaged_file_is_found(library, file, spoil):
    spoil(library.path / file)
    (finding,) = verify(library.path)
    assert str(library.path / file) in finding and "restore it from a copy" in finding and finding.endswith(".")


def test_a_concept_that_is_not_orthogonal_is_found(library):
    """A file that is well in itself and has the right hash: another concept's basis."""
    cat = load_file(library.path / library.find("cat").file)
    with_header = read_metadata(library.path / CONCEPT)
    save_file(cat, library.path / CONCEPT, with_header)
    listed = relist(library, "dog", sha256=hashlib.sha256((library.path / CONCEPT).read_bytes()).hexdigest())
    (finding,) = verify(listed.path)
    assert "0002-dog.safetensors is not orthogonal to concept 'cat'" in finding


def read_metadata(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def test_a_header_that_disagrees_is_found(library):
    relist(library, "dog", trigger="other")
    assert "0002-dog.safetensors describes another concept than the manifest" in verify(library.path)[0]
    rewrite(library, "dog", lambda tensors: None)  # without a header of ours
    assert "does not say which concept it is" in verify(library.path)[0]


def test_an_order_that_disagrees_is_found_and_mended(library):
    manifest = json.loads((library.path / MANIFEST).read_text())
    manifest["concepts"].reverse()
    (library.path / MANIFEST).write_text(json.dumps(manifest))
    assert ["order of their numbers" in finding for finding in verify(library.path)] == [True]
    assert repair(library.path)[0].names == NAMES and verify(library.path) == []


def test_a_running_training_is_no_finding(library):
    (library.path / "concepts" / ".0004-bird.safetensors.1.tmp").write_bytes(b"half")
    with library.writing():
        assert verify(library.path) == []
    assert ["an interruption left it" in finding for finding in verify(library.path)] == [True]


def test_links_that_lead_out_are_found(library, tmp_path):
    for folder in ("concepts", "moments"):
        (library.path / folder).rename(tmp_path / folder)
        (library.path / folder).symlink_to(tmp_path / folder)
    found = " ".join(verify(library.path))
    assert "leads out of the library's folder" in found
    for relative in (CONCEPT, MOMENTS):
        assert f"names a file outside its folder ({relative})" in found
    with pytest.raises(SeqLoRAError, match="outside its folder"):
        LibraryWriter(library).add("bird", "x", "", TrainedConcept(tensors_free(library), None, []), {})


def tensors_free(library):
    from seqlora.lora.types import LoRAPair

    return {
        layer: LoRAPair(
            torch.zeros(m, library.ranks({layer: (m, n)})[layer]), torch.eye(n, library.ranks({layer: (m, n)})[layer])
        )
        for layer, (m, n) in library.base.layers.items()
    }


def test_a_library_that_is_a_link_is_its_users_choice(library, tmp_path):
    (tmp_path / "linked").symlink_to(library.path)
    opened = Library.open(tmp_path / "linked")
    assert opened.load("cat") and verify(tmp_path / "linked") == []
    assert LibraryWriter(opened).remove("cat").names == ["dog", "fox"]


# -- repair


@pytest.mark.parametrize("spoil", [truncated, lambda path: path.unlink(), lambda path: path.write_text("[]")])
def test_a_lost_manifest_is_rebuilt_exactly(library, spoil):
    library = LibraryWriter(library).rename("dog", "hound")
    before = contents(library.path)
    spoil(library.path / MANIFEST)
    repaired, _ = repair(library.path)
    assert repaired == library and contents(library.path).items() >= before.items()
    assert verify(library.path) == [] and repair(library.path) == (library, [])


def test_a_lost_manifest_is_not_written_over(library):
    (library.path / MANIFEST).unlink()
    with pytest.raises(
        SeqLoRAError, match=r"pets has concepts but no library\.json; restore it from a copy, or rebuild it with"
    ):
        Library.create(library.path, 4, 8, "attention and mlp")
    assert repair(library.path)[0] == library


def test_an_empty_manifest_takes_in_what_is_there(library, tmp_path):
    empty = Library.create(tmp_path / "empty", 4, 8, "attention and mlp")
    shutil.copy(empty.path / MANIFEST, library.path / MANIFEST)
    assert repair(library.path)[0] == library and verify(library.path) == []
    other = Library.create(tmp_path / "other", 2, 8, "attention and mlp")
    shutil.copy(other.path / MANIFEST, library.path / MANIFEST)  # of another rank: a choice, not a loss
    assert repair(library.path)[0] == replace(other, path=library.path)


def test_a_concept_that_was_not_listed_yet_is_taken_in(library, model):
    """As after a kill between the concept's file and the manifest."""
    before = (library.path / MANIFEST).read_bytes()
    full = run_to_end(train_steps(library, small_request("bird", 7), QUICK, model)).library
    (library.path / MANIFEST).write_bytes(before)
    assert len(verify(library.path)) == 2
    repaired, done = repair(library.path)
    assert repaired == full and done == ["Concept 'bird' was taken in from concepts/0004-bird.safetensors."]
    assert verify(library.path) == []


def test_of_two_versions_the_listed_one_stays(library, model):
    old = contents(library.path)
    new = LibraryWriter(library).add(
        "cat", "zyx", "", taught_beside(library, model, "cat", 9), {"orthogonality": "exact"}, replaces="cat"
    )
    for name in ("concepts/0001-cat.safetensors", "moments/0001.safetensors"):  # as if the process had died before deleting
        (library.path / name).write_bytes(old[name])
    repaired, done = repair(library.path)
    assert repaired == new and any("another version of 'cat'" in line for line in done)
    assert (library.path / "damaged" / "0001-cat.safetensors").read_bytes() == old["concepts/0001-cat.safetensors"]


def test_what_cannot_be_used_is_set_aside_never_deleted(library):
    flipped(library.path / CONCEPT)
    spoilt = contents(library.path)
    (library.path / "concepts" / ".x.safetensors.1.tmp").write_bytes(b"half")
    repaired, done = repair(library.path)
    after = contents(library.path)
    assert repaired.names == ["cat", "fox"] and verify(library.path) == [] and len(done) == 4
    assert after["damaged/0002-dog.safetensors"] == spoilt[CONCEPT]
    assert sorted(after.values()) == sorted([*(v for k, v in spoilt.items() if k != MANIFEST), after[MANIFEST]])


def test_a_concept_of_another_library_is_not_taken_in(library, tmp_path, model):
    other = Library.create(tmp_path / "other", 2, 8, "attention and mlp")
    run_to_end(train_steps(other, small_request("owl", 5), QUICK, model))
    shutil.copy(tmp_path / "other" / "concepts" / "0001-owl.safetensors", library.path / "concepts" / "0009-owl.safetensors")
    repaired, done = repair(library.path)
    assert repaired == library and "belongs to another library" in done[0]
    assert (library.path / "damaged" / "0009-owl.safetensors").exists() and verify(library.path) == []


def test_damaged_moments_of_the_model_are_measured_again(library, model):
    flipped(library.path / "moments" / "base.safetensors")
    repaired, done = repair(library.path)
    assert "will be measured again" in done[0] and repaired.prior() is None and verify(library.path) == []
    taught = run_to_end(train_steps(repaired, small_request("bird", 7), QUICK, model))
    assert taught.library.prior() is not None and verify(library.path) == []


def test_there_must_be_something_to_repair(library, tmp_path):
    with pytest.raises(SeqLoRAError, match="There is no library at"):
        repair(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"pets"}
    manifest = json.loads((library.path / MANIFEST).read_text())
    (library.path / MANIFEST).write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(SeqLoRAError, match="has format 2"):  # a newer version knows better
        repair(library.path)
    shutil.rmtree(library.path / "concepts")
    (library.path / MANIFEST).unlink()
    (library.path / "concepts").mkdir()
    with pytest.raises(SeqLoRAError, match="no manifest and no concept file to rebuild it from"):
        repair(library.path)


# -- copy


def test_a_copy_of_some(library, tmp_path):
    part = copy(library, ["fox", "cat"], tmp_path / "part")
    assert part == Library.open(tmp_path / "part") and part.names == ["cat", "fox"] and verify(part.path) == []
    assert same(tensors_of(part, "fox"), tensors_of(library, "fox")) and part.moments_sum() and part.prior()
    assert [record.id for record in part.concepts] == [1, 3]


@pytest.mark.parametrize(
    "names,to,sentence",
    [
        (["cat"], "pets", "There is something at .*pets already; choose another name"),
        (["cow"], "new", "'pets' has no concept 'cow'"),
        ([], "new", "No concept is named"),
        (["cat"], "con", "The library name 'con'"),
        (["dog"], "new", "0002-dog.safetensors was changed since it was written"),
    ],
)
def test_a_copy_that_cannot_be_made(library, tmp_path, names, to, sentence):
    flipped(library.path / CONCEPT)
    before = contents(tmp_path)
    with pytest.raises(SeqLoRAError, match=sentence):
        copy(library, names, tmp_path / to)
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()


# -- the command line


def run(capsys, *args):
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out + err


def test_the_command_line(library, tmp_path, capsys):
    path = library.path
    assert run(capsys, "verify", path) == (0, "pets: all files are as they should be\n")
    assert run(capsys, "rename", path, "dog", "hound") == (0, "pets: cat, hound, fox\n")
    assert run(capsys, "copy", path, tmp_path / "part", "hound", "cat") == (0, f"{tmp_path / 'part'}: cat, hound\n")
    assert run(capsys, "remove", path, "cat", "fox") == (0, "pets: hound\n")
    (path / MANIFEST).unlink()
    code, text = run(capsys, "repair", path)
    assert code == 0 and "library.json was rebuilt" in text and "'hound' was taken in" in text
    flipped(path / "moments" / "0002.safetensors")
    code, text = run(capsys, "verify", path)
    assert code == 1 and "0002.safetensors was changed" in text and "'pets' is not as it should be; see above" in text


def test_removing_several_is_all_or_nothing_for_a_typo(library, capsys):
    assert run(capsys, "remove", library.path, "cat", "dgo")[0] == 1
    assert Library.open(library.path) == library


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "\\\\host\\share", "con", "COM1.txt", ".x", "a\u2215b", "\uff0e\uff0e", "x" * 65]
)
def test_the_command_line_refuses_unsafe_names(library, tmp_path, capsys, name):
    before = contents(tmp_path)
    assert run(capsys, "rename", library.path, "cat", name)[0] == 1
    assert run(capsys, "remove", library.path, name)[0] == 1
    if not name.startswith("/") and ".." not in name:  # those are folders of the user's own
        assert run(capsys, "copy", library.path, tmp_path / name, "cat")[0] == 1
    assert contents(tmp_path) == before


def test_short_work_does_not_wait_for_a_training(library, capsys, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with library.writing():
        for command in (["remove", library.path, "cat"], ["rename", library.path, "cat", "cow"], ["repair", library.path]):
            code, text = run(capsys, *command)
            assert code == 1 and "A training is writing to library 'pets'" in text


# -- refusals of the disk


def as_nobody(action):
    """Runs it without root's rights; returns what it raised, as text."""
    os.setegid(65534)
    os.seteuid(65534)
    try:
        action()
        return "nothing"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_is_read_only(library, tmp_path):
    parent = tmp_path
    while parent != parent.parent:  # nobody may come here
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
        parent = parent.parent
    before = contents(library.path)
    sentence = "is read-only, change its permissions or use another one."
    for action in (
        lambda: LibraryWriter(library).remove("cat"),
        lambda: LibraryWriter(library).rename("cat", "cow"),
        lambda: Library.create(tmp_path / "new", 4, 4, "attention"),
        lambda: Library.open(library.path).writing().__enter__(),
        lambda: copy(library, ["cat"], tmp_path / "new"),
    ):
        told = as_nobody(action)
        assert told.startswith("SeqLoRAError: Could not") and told.endswith(sentence), told
    assert as_nobody(lambda: print(verify(library.path)) if verify(library.path) else None) == "nothing"
    assert contents(library.path) == before
