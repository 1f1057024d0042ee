"""A library as one file: what comes out is what went in, and what was tampered with does not come out."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seqlora.cli.main import main
from seqlora.errors import SeqLoRAError
from seqlora.library.bundle import free_name, name_of, pack, unpack
from seqlora.library.store import Library
from seqlora.training.checkpoint import FOLDER
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, contents, small_library, small_request


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return small_library(tmp_path_factory.mktemp("here") / "my pets", SmallModel())


@pytest.fixture(scope="module")
def packed(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (library.path / FOLDER).mkdir()
    (library.path / FOLDER / "unfinished.safetensors").write_bytes(b"of no use elsewhere")
    return pack(library, tmp_path_factory.mktemp("packed") / "pets.zip")


def rewritten(packed: Path, to: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    """The file with its entries changed; None drops one."""
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(to, "w") as target:
        for name in source.namelist():
            entry = change(name, source.read(name))
            if entry is not None:
                target.writestr(*entry)
    return to


def test_it_comes_out_as_it_went_in_and_more_is_taught(library: Library, packed: Path, tmp_path: Path):
    made = unpack(packed, tmp_path / "libraries" / "other name")
    before, after = contents(library.path), contents(made.path)
    del before[f"{FOLDER}/unfinished.safetensors"]
    assert after == before and [path.name for path in made.path.parent.iterdir()] == ["other name"]
    taught = run_to_end(train_steps(made, small_request("elk"), QUICK, SmallModel())).library
    assert taught.names == ["cat", "dog", "elk"]
    one, other = (opened.compose({"cat": 1.0, "dog": 0.5}) for opened in (library, taught))
    assert all(torch.equal(one[layer].up, other[layer].up) for layer in one)


def test_any_program_unzips_it(library: Library, packed: Path, tmp_path: Path):
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None and {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        archive.extractall(tmp_path)
    assert Library.open(tmp_path / "my pets").digest == library.digest


def test_a_folder_that_was_zipped_by_hand_is_taken_too(library: Library, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "by hand.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents(library.path).items():
            archive.writestr(f"my pets/{name}", data)
    assert unpack(tmp_path / "by hand.zip", tmp_path / "pets").names == library.names


def test_names(packed: Path):
    assert name_of(packed) == "my pets"
    assert free_name("my pets", []) == "my pets"
    assert free_name("my pets", ["My Pets", "my pets 2", "zoo"]) == "my pets 3"
    assert len(free_name("x" * 64, ["x" * 64])) <= 64


def manifest_with(**changes: object) -> Callable[[str, bytes], tuple[str, bytes]]:
    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if not name.endswith("library.json"):
            return name, data
        told = json.loads(data)
        told["concepts"][0] |= changes
        return name, json.dumps(told).encode()

    return change


def spoilt(name: str, data: bytes) -> tuple[str, bytes]:
    return name, data[:-1] + bytes([data[-1] ^ 1]) if "0002" in name and "concepts" in name else data


@pytest.mark.parametrize(
    "change,sentence",
    [
        (lambda name, data: None if name.endswith("library.json") else (name, data), "no library in"),
        (lambda name, data: (f"deeper/{name}", data), "no library in"),
        (lambda name, data: (name.replace("my pets", ".."), data), "library name '..' is no plain name"),
        (lambda name, data: (name.replace("my pets", "a:b"), data), "contains ':'"),
        (lambda name, data: None if "0002" in name and "concepts" in name else (name, data), "lacks my pets/concepts/0002"),
        (spoilt, "is damaged"),
        (lambda name, data: (name, b"[" * 10_000) if name.endswith("library.json") else (name, data), "list of concepts"),
        (manifest_with(file="../../stolen.safetensors"), "damaged|outside"),
        (manifest_with(file="/tmp/stolen.safetensors"), "damaged|outside"),
        (lambda name, data: (name, b"\0" * 50_000_000) if "0001" in name and "concepts" in name else (name, data), "damaged"),
    ],
)
def test_what_was_tampered_with_leaves_nothing(packed: Path, tmp_path: Path, change, sentence: str):
    forged = rewritten(packed, tmp_path / "forged.zip", change)
    with pytest.raises(SeqLoRAError, match=sentence):
        unpack(forged, tmp_path / "libraries" / "pets")
    assert not (tmp_path / "libraries").exists() or contents(tmp_path / "libraries") == {}
    assert not list(tmp_path.rglob("stolen*")) and not list(tmp_path.rglob(".unpacking*"))


def test_a_bomb_is_not_unpacked(packed: Path, tmp_path: Path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, b"\0" * 100_000_000 if "0001" in name else source.read(name))
    with pytest.raises(SeqLoRAError, match="unpacks to far more than it holds"):
        unpack(bomb, tmp_path / "pets")


@pytest.mark.parametrize("data", [b"", b"no zip", "cut"])
def test_what_is_no_archive_is_one_sentence(packed: Path, tmp_path: Path, data: bytes | str):
    file = tmp_path / "file.zip"
    file.write_bytes(packed.read_bytes()[:-100] if data == "cut" else bytes(data))
    for act in (name_of, lambda file: unpack(file, tmp_path / "pets")):
        with pytest.raises(SeqLoRAError, match="is no library's file, or not a whole one"):
            act(file)


def test_nothing_is_written_over(library: Library, packed: Path, tmp_path: Path):
    (tmp_path / "pets").write_text("mine")
    with pytest.raises(SeqLoRAError, match="There is something at"):
        unpack(packed, tmp_path / "pets")
    with pytest.raises(SeqLoRAError, match="end it with .zip"):
        pack(library, tmp_path / "pets")
    assert (tmp_path / "pets").read_text() == "mine"


def test_a_library_with_a_changed_file_is_not_packed(tmp_path: Path):
    library = small_library(tmp_path / "pets", SmallModel())
    file = library.path / library.find("dog").file
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(SeqLoRAError, match="was changed since it was written"):
        pack(library, tmp_path / "out" / "pets.zip")
    assert contents(tmp_path / "out") == {}


def test_the_command_line(library: Library, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (["pack", str(library.path)], ["unpack", "my pets.zip"], ["unpack", "my pets.zip", "second"]):
        monkeypatch.setattr(sys, "argv", ["seqlora", *arguments])
        main()
    assert {path.name for path in tmp_path.iterdir()} == {"my pets.zip", "my pets", "second"}
    assert capsys.readouterr().out.splitlines()[1].endswith("my pets: cat, dog")
