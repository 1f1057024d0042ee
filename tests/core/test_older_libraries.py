"""What was taught before goes on: a library and an unfinished training of format 1, in tests/data/library_v1."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.settings import METHODS, Settings, from_record, legacy_names, method_of, method_settings
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, contents, small_request

OLD = Path(__file__).parents[1] / "data" / "library_v1"
BIRD = QUICK.with_(steps=12, batch_size=2)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    shutil.copytree(OLD / "pets", tmp_path / "pets")
    return Library.open(tmp_path / "pets")


def test_it_opens_whole(library: Library):
    assert library.names == ["cat", "dog"] and (library.rank, library.capacity) == (4, 8)
    assert verify(library.path) == []
    assert {method_of(record.settings) for record in library.concepts} == {"seqlora"}
    for name in library.names:
        assert all(torch.isfinite(pair.up).all() for pair in library.load(name).values())


def test_the_request_of_a_concept_finds_it(library: Library):
    before = contents(library.path)
    for seed, name in enumerate(library.names):
        found = run_to_end(train_steps(library, small_request(name, seed, trigger="zyx"), QUICK, SmallModel()))
        assert found.reused and found.record == library.find(name)
    assert contents(library.path) == before


def test_an_unfinished_training_ends_as_it_would_have(library: Library):
    """To rounding: the earlier concepts' span has another orthonormal basis today, the bases themselves."""
    notes = []
    taught = run_to_end(
        train_steps(library, small_request("bird", 2, trigger="zyx"), BIRD, SmallModel()),
        lambda progress: notes.append(progress.note),
    )
    assert "Goes on from step 5." in notes and taught.report.resumed_at == 5
    expected, pairs = load_file(OLD / "bird.safetensors"), taught.library.load("bird")
    assert list(taught.losses) == pytest.approx(expected.pop("losses").tolist(), rel=1e-5)
    assert {f"{name}.{part}" for name in pairs for part in ("up", "basis")} == expected.keys()
    for name, pair in pairs.items():
        torch.testing.assert_close(pair.up, expected[f"{name}.up"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pair.basis, expected[f"{name}.basis"], rtol=1e-4, atol=1e-5)
    assert verify(taught.library.path) == []


def test_it_can_be_cared_for(library: Library):
    with library.writing() as writer:
        writer.rename("cat", "lion")
        writer.remove("dog")
    assert Library.open(library.path).names == ["lion"] and verify(library.path) == []


def test_settings_recorded_under_older_names_are_understood(library: Library):
    for record in library.concepts:
        assert {"basis_start", "context", "interference"} <= record.settings.keys()
        assert Settings(**from_record(record.settings)) == QUICK
    for method in METHODS:
        settings = method_settings(method, QUICK)
        recorded = legacy_names(settings)
        assert Settings(**from_record(recorded)) == settings
        assert method_of(recorded) == method
    assert legacy_names(QUICK.with_(orthogonality="none"))["orthogonality"] == "free"
