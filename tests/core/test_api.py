"""The public names, as the documents use them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import seqlora

ROOT = Path(__file__).parents[2]
# Nothing of the base model is measured, so that it takes no time; everything else is as written.
QUICK = 'Settings(steps=2, interference_weight=0.0, basis_init="random")'


def test_the_example_runs_as_it_is_written(tmp_path):
    pytest.importorskip("diffusers")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code.count("Settings()") == 1
    (tmp_path / "pictures" / "rex").mkdir(parents=True)
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (80, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / "rex" / f"{seed}.png")
    script = tmp_path / "example.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + code.replace("Settings()", QUICK), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "training 2/2" in done.stdout
    assert (tmp_path / "rex.safetensors").is_file() and seqlora.Library.open(tmp_path / "my-dogs").names == ["rex"]


def test_the_page_names_everything_that_is_public():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in page for name in seqlora.__all__ if name != "TrainResult") and "`TrainResult`" in page


@pytest.mark.parametrize("name", ["train", "compose", "export_lora", "load_model"])
def test_every_public_function_says_what_it_takes_and_raises(name):
    function = getattr(seqlora, name)
    doc = inspect.getdoc(function)
    assert all(f"{part}:" in doc for part in ("Args", "Raises", "Example"))
    assert all(f"\n    {argument}: " in doc for argument in inspect.signature(function).parameters)
