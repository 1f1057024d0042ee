"""Fixtures that need a real ComfyUI or a browser. Without one, every test that asks for it is skipped with the same visible
reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seqlora.training.prior import FOLDER
from tests.support.editor import NO_BROWSER, RENDERERS, Editor, has_browser, open_chromium
from tests.support.hosts import NO_HOST, HostServer, find_host
from tests.support.small import SmallModel, small_library

if TYPE_CHECKING:
    from tests.support.stub import StubServer


@pytest.fixture(scope="session")
def host() -> tuple[Path, Path]:
    """Folder and interpreter of the ComfyUI to test against."""
    found = find_host()
    if found is None:
        pytest.skip(NO_HOST)
    return found


@pytest.fixture(scope="session")
def server(host: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """One running ComfyUI with this pack, shared by all tests. What is measured of base models all servers of a run share."""
    temporary = tmp_path_factory.getbasetemp()
    priors = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / "priors"
    priors.mkdir(exist_ok=True)
    with HostServer() as running:
        libraries = running.models_dir / "seqlora"
        libraries.mkdir(exist_ok=True)
        (libraries / FOLDER).symlink_to(priors, target_is_directory=True)
        yield running


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small library with two taught concepts, cat and dog; not to be changed."""
    return small_library(tmp_path_factory.mktemp("small") / "pets", SmallModel()).path


@pytest.fixture
def host_pets(server: HostServer, pets: Path) -> Iterator[Path]:
    """The same where the real ComfyUI finds it, as "small pets"."""
    place = server.models_dir / "seqlora" / "small pets"
    shutil.copytree(pets, place)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser, shared by all tests; without one they are skipped."""
    if not has_browser():
        pytest.skip(NO_BROWSER)
    with open_chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def editors(chromium: Any) -> Iterator[Callable[[str, str], Editor]]:
    """A page with the editor for each (address, renderer), opened once."""
    with ExitStack() as pages:

        @cache
        def opened(url: str, renderer: str) -> Editor:
            editor = Editor(chromium, url, renderer)
            pages.callback(editor.close)
            return editor

        yield opened


@pytest.fixture(scope="session")
def stub_server(chromium: Any) -> Iterator[StubServer]:
    from tests.support.stub import StubServer  # needs what a machine without a browser lacks

    with StubServer() as running:
        yield running


@pytest.fixture
def stub(stub_server: StubServer) -> StubServer:
    """The small server in place of a ComfyUI, with nothing in it."""
    stub_server.reset()
    return stub_server


@pytest.fixture(params=RENDERERS)
def editor(request: pytest.FixtureRequest, stub: StubServer, editors: Callable[[str, str], Editor]) -> Iterator[Editor]:
    """The editor at the stub, in both renderers, with an empty workflow. Afterwards the console holds nothing of this pack."""
    opened = editors(stub.url, request.param)
    opened.clear()
    yield opened
    assert opened.problems == []


@pytest.fixture(params=RENDERERS)
def host_editor(request: pytest.FixtureRequest, server: HostServer, editors: Callable[[str, str], Editor]) -> Iterator[Editor]:
    """The same at the real ComfyUI."""
    opened = editors(f"http://127.0.0.1:{server.port}", request.param)
    opened.clear()
    yield opened
    server.interrupt()  # whatever a test that failed has left running
    assert opened.problems == []
