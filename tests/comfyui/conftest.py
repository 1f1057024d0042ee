"""What several files of these tests look at, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.support.hosts import run_in_host


@pytest.fixture(scope="session")
def applied(host: object, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What tests/comfyui/hostscripts/applying.py reports, once for each family."""
    return cache(lambda family: run_in_host("applying.py", family, tmp_path_factory.mktemp(f"{family}-applied"), timeout=600))
