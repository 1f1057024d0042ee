"""The package without this repository: built, installed elsewhere, run from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "seqlora")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package as the wheel brings it."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:  # a build leaves files beside its sources
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "installed", wheel], check=True)
    return folder / "installed"


def run(installed: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "seqlora", *arguments]
    process = subprocess.run(
        command,
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def test_every_file_of_the_package_is_in_it(installed: Path):
    def files(folder: Path) -> set[str]:
        found = (path.relative_to(folder) for path in (folder / "seqlora").rglob("*") if path.is_file())
        return {path.as_posix() for path in found if "__pycache__" not in path.parts}

    assert files(installed) == files(ROOT)


def test_it_draws(installed: Path):
    run(installed, "sample", "a photo of a red apple", "--count", "1", "--steps", "2", "--out", "apple.png")
    assert (installed.parent / "apple.png").stat().st_size > 500


@pytest.mark.exhaustive
def test_its_demo_runs(installed: Path):
    assert "all together" in run(installed, "demo", "--concepts", "2", "--out", "demo")
