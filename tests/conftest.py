"""Fixtures that need a real ComfyUI. Without one, every test that asks for them is skipped with the same visible reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import NO_HOST, HostServer, find_host


@pytest.fixture(scope="session")
def host() -> tuple[Path, Path]:
    """Folder and interpreter of the ComfyUI to test against."""
    found = find_host()
    if found is None:
        pytest.skip(NO_HOST)
    return found


@pytest.fixture(scope="session")
def server(host: tuple[Path, Path]) -> Iterator[HostServer]:
    """One running ComfyUI with this pack, shared by all tests."""
    with HostServer() as running:
        yield running
