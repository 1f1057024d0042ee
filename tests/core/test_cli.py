"""What the command line refuses: one sentence, before any work, with nothing created."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from seqlora.cli.main import main

TRAIN = ["train", "pictures", "--library", "lib", "--trigger", "zorv"]
SAMPLE = ["sample", "a cat"]
REFUSED = [
    [*TRAIN, "--size", "-64"],
    [*TRAIN, "--size", "0"],
    [*TRAIN, "--size", "99999999"],
    [*TRAIN, "--seed", "99999999999999999999"],
    [*TRAIN, "--seed", "-1"],
    [*TRAIN, "--steps", "-3"],
    [*TRAIN, "--steps", "1e3"],
    [*TRAIN, "--learning-rate", "nan"],
    [*TRAIN, "--learning-rate", "-1"],
    [*TRAIN, "--learning-rate", "2"],
    [*TRAIN, "--inner-steps", "0"],
    [*TRAIN, "--co-training", "all"],
    [*TRAIN, "--interference-weight", "nan"],
    [*TRAIN, "--basis-learning-rate", "inf"],
    [*TRAIN, "--batch-size", "-1"],
    [*TRAIN, "--rank", "0"],
    [*TRAIN, "--capacity", "many"],
    [*TRAIN, "--checkpoint-minutes", "nan"],
    [*SAMPLE, "--count", "0"],
    [*SAMPLE, "--count", "-1"],
    [*SAMPLE, "--steps", "0"],
    [*SAMPLE, "--steps", "-3"],
    [*SAMPLE, "--seed", "99999999999999999999"],
    [*SAMPLE, "--guidance", "nan"],
    [*SAMPLE, "--out", "x.txt"],
    [*SAMPLE, "--out", "x"],
    [*SAMPLE, "--out", "."],
    ["report", "lib", "--delta", "2"],
    ["report", "lib", "--delta", "nan"],
    ["demo", "--seed", "-1"],
]


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_arguments_that_cannot_be_are_one_sentence(tmp_path: Path, monkeypatch, capsys, arguments: list[str]):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    *usage, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"seqlora {arguments[0]}: error: argument {arguments[-2]}: ") and usage[0].startswith("usage:")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes,sentence",
    [
        (["--trigger", " "], "The trigger is empty"),
        (["--name", "a/b"], "The concept name 'a/b' contains '/'"),
        (["--model", "nowhere"], "There is no diffusers pipeline at nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refused_training_leaves_no_library(tmp_path: Path, monkeypatch, capsys, changes: list[str], sentence: str):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    picture = Image.new("RGB", (64, 64), "red")
    picture.putpixel((0, 0), (0, 0, 255))
    picture.save("pictures/a.png")
    assert main([*TRAIN, *changes]) == 1
    assert sentence in capsys.readouterr().err
    assert not Path("lib").exists()


def test_no_pictures_leave_no_library(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(TRAIN) == 1
    assert "There are no pictures in pictures" in capsys.readouterr().err
    assert not Path("lib").exists()
