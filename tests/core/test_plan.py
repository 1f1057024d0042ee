"""What a training is said to need against what it then takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from seqlora.cli.main import main
from seqlora.errors import SeqLoRAError
from seqlora.library.manifest import Manifest
from seqlora.library.store import Library
from seqlora.settings import Settings
from seqlora.training.checkpoint import FOLDER
from seqlora.training.plan import plan
from seqlora.training.progress import Phase, run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, ReadingModel, SmallModel, contents, small_library, small_request

HEADER = 6000  # bytes that a file may have beside its tensors


def test_the_disk_it_tells_is_what_the_files_take(tmp_path: Path):
    library = Library.create(tmp_path / "small", 8, 2, "attention and mlp")
    told = plan(library, small_request("cat"), QUICK, SmallModel())
    checkpoints: list[int] = []

    def look(progress):
        if progress.phase is Phase.TRAINING and progress.step == 5:
            checkpoints.extend(path.stat().st_size for path in (library.path / FOLDER).glob("*.safetensors"))

    steps = train_steps(library, small_request("cat"), QUICK, SmallModel(), checkpoint_minutes=1e-9)
    record = run_to_end(steps, look).library.find("cat")
    written = sum((library.path / file).stat().st_size for file in (record.file, f"moments/{record.id:04}.safetensors"))
    assert 0 <= written - told.file_bytes < 2 * HEADER
    assert checkpoints and all(0 <= size - told.checkpoint_bytes < 3 * HEADER for size in checkpoints)  # with the generator


def test_it_counts_the_steps_and_writes_nothing(tmp_path: Path):
    library = small_library(tmp_path / "small", SmallModel())
    before, state = contents(tmp_path), torch.get_rng_state()
    told = plan(library, small_request("elk"), Settings(steps=1000, batch_size=2), SmallModel())
    assert contents(tmp_path) == before and torch.equal(torch.get_rng_state(), state)
    assert (told.steps, told.batch_size, told.prior_seconds) == (1000, 2, 0)  # this library's base model is measured
    assert told.seconds == told.concept_seconds + 1000 * told.step_seconds and told.step_seconds > 0
    assert told.device_bytes is None
    (first, last) = told.lines()
    assert "1000 steps of" in first and "with 2 pictures each" in first and "MB of disk" in last


def test_the_base_model_is_counted_where_it_must_be_measured(tmp_path: Path):
    library = Library(tmp_path / "none", Manifest(8, 2, "attention and mlp"))
    told = plan(library, small_request("cat"), QUICK, SmallModel())
    assert told.prior_seconds > 0 and any("to measure the base model" in line for line in told.lines())
    free = QUICK.with_(interference_weight=0.0, basis_init="random")
    assert plan(library, small_request("cat"), free, SmallModel()).prior_seconds == 0
    assert contents(tmp_path) == {}


def test_learned_vectors_are_probed_too(tmp_path: Path):
    library = Library(tmp_path / "none", Manifest(8, 2, "attention and mlp"))
    assert plan(library, small_request("cat"), QUICK.with_(trigger_vectors=1), ReadingModel()).steps == QUICK.steps


def test_what_a_training_would_be_refused_for_the_plan_is_too(tmp_path: Path):
    library = small_library(tmp_path / "small", SmallModel())
    with pytest.raises(SeqLoRAError, match="another model|does not fit|was taught on"):
        plan(library, small_request("elk"), QUICK, SmallModel(width=48))


def test_the_command_line_tells_it_and_makes_no_library(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "one.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("seqlora.demo.demo_model.DemoModel.generic_captions", ["a red apple"])
    command = ["seqlora", "train", "pictures", "--library", "lib", "--trigger", "zobiku", "--plan", "--steps", "7"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    said = capsys.readouterr().out
    assert "7 steps of" in said and "of disk" in said and not (tmp_path / "lib").exists()
    with pytest.raises(json.JSONDecodeError):
        json.loads(said)  # nothing was taught
