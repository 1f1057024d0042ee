"""What the base model sees and feels is measured once and shared by the libraries of a folder."""

import json
import os

import pytest
import torch

from seqlora.io.safetensors_file import read_metadata
from seqlora.library.store import Library
from seqlora.training import prior as priors
from seqlora.training.prior import FOLDER, KEPT, measured_prior
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, TOKENS, WIDTH, SmallModel, small_request

SHAPE = (TOKENS, WIDTH)


def new_library(folder, name):
    return Library.create(folder / name, 4, 8, "attention and mlp")


def look(library, model, shape=SHAPE):
    """The prior, and how many rounds of measuring it took."""
    told = []
    return run_to_end(measured_prior(library, model, model.layers("attention and mlp"), shape), told.append), len(told)


def files(folder):
    return sorted((folder / FOLDER).iterdir())


def same(one, other):
    return all(
        torch.equal(getattr(one, kind)[name].sketch, moment.sketch)
        for kind in ("by_input", "output_curvature")
        for name, moment in getattr(other, kind).items()
    )


def test_a_second_library_beside_the_first_measures_nothing(tmp_path):
    model, alike = SmallModel(), SmallModel()
    first, rounds = look(new_library(tmp_path, "one"), model)
    again, none = look(new_library(tmp_path, "two"), alike)
    assert rounds and not none and same(first, again) and len(files(tmp_path)) == 1
    assert first.output_energy == again.output_energy and first.input_of == again.input_of


def test_the_second_library_is_taught_to_the_same_bits(tmp_path):
    taught = []
    for name in ("one", "two"):
        library = run_to_end(train_steps(new_library(tmp_path, name), small_request("cat"), QUICK, SmallModel())).library
        assert library.manifest.prior_sha256 and library.prior()
        taught.append(library.load("cat"))
    assert all(torch.equal(a, b) for layer in taught[0] for a, b in zip(taught[0][layer], taught[1][layer], strict=True))


def test_another_model_or_size_of_pictures_is_measured_for_itself(tmp_path):
    library, other = new_library(tmp_path, "one"), SmallModel()
    other.fingerprint = "another"
    assert look(library, SmallModel())[1] and look(library, other)[1] and look(library, other, (8, WIDTH))[1]
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("how", ["cut", "other layers"])
def test_a_file_that_is_no_good_is_measured_again(tmp_path, how):
    library, model = new_library(tmp_path, "one"), SmallModel()
    first, _ = look(library, model)
    (file,) = files(tmp_path)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:  # a file that is whole, and bound to this model, by a hand that knows how
        narrow, _ = look(new_library(tmp_path / "elsewhere", "one"), SmallModel(16), (TOKENS, 16))
        priors.write_bound(file, bound_to(file), priors.header_of(narrow), priors.tensors_of(narrow))
    again, rounds = look(library, model)
    assert rounds and same(first, again) and not look(library, model)[1]


def bound_to(file):
    return json.loads(read_metadata(file)["seqlora"])["binding"]


def test_the_folder_does_not_grow_for_ever(tmp_path):
    library = new_library(tmp_path, "one")
    models = []
    for number in range(KEPT + 1):
        models.append(SmallModel())
        models[-1].fingerprint = f"model {number}"
        look(library, models[-1])
        for age, file in enumerate(sorted(files(tmp_path), key=lambda path: path.stat().st_mtime, reverse=True)):
            os.utime(file, (1e9 - age, 1e9 - age))
    assert len(files(tmp_path)) == KEPT
    assert not look(library, models[-1])[1] and look(library, models[0])[1]


def test_a_place_where_nothing_can_be_written_costs_a_measurement_only(tmp_path):
    library = new_library(tmp_path, "one")
    (tmp_path / FOLDER).write_text("in the way")
    found, rounds = look(library, SmallModel())
    assert found.by_input and rounds and look(library, SmallModel())[1]
