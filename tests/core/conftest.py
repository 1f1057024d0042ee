"""A library that a test may change, as many of them need."""

import shutil

import pytest

from seqlora.library.store import Library
from tests.support.small import SmallModel, small_library


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return small_library(tmp_path_factory.mktemp("models") / "pets", SmallModel())


@pytest.fixture
def library(original, tmp_path):
    """A copy of the module's `original`, which a module may make otherwise."""
    shutil.copytree(original.path, tmp_path / "pets")
    return Library.open(tmp_path / "pets")
