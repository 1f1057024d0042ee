"""Every part of `make torture`, in small."""

import pytest

from tests.robustness import disk, kill, mutations, paths, writers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda: kill.run(3), id="kill"),
        pytest.param(lambda: mutations.run(300), id="mutations"),
        pytest.param(lambda: disk.run(6), id="disk"),
        pytest.param(lambda: writers.run(2), id="writers"),
        pytest.param(lambda: paths.run(comfyui=False), id="paths"),  # the nodes have tests of their own
    ],
)
def test_torture(run):
    run()
