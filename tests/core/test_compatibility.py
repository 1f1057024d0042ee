"""What docs/compatibility.md promises of diffusers, cell by cell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
from seqlora.backends.load import load_pipeline  # noqa: E402
from seqlora.library.export import export_composed  # noqa: E402
from seqlora.lora.targets import layer_shapes  # noqa: E402
from tests.core.test_export_diffusers import SELECTION, library_of, prediction  # noqa: E402
from tests.support.tiny_pipelines import saved  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
COLUMNS = {"sd": 1, "sdxl": 2, "sd3": 3, "flux": 4}


def promised(kind: str) -> dict[str, str]:
    """File -> what the page says of it for this family."""
    section = PAGE.read_text(encoding="utf-8").split("## diffusers")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")]
    return {re.sub(r"export `(\w+)`", r"\1", row[0]): row[COLUMNS[kind]] for row in rows[1:]}


def outcome(model, wanted: torch.Tensor, bare: torch.Tensor, file: Path) -> str:
    try:
        model.pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    except (ValueError, KeyError):
        return "refused"
    try:
        change = prediction(model) - bare
    finally:
        model.pipe.unload_lora_weights()
    return "complete" if (change - wanted).norm() < 1e-4 * wanted.norm() else "no names"


@pytest.mark.parametrize("kind", COLUMNS)
def test_diffusers_reads_what_the_page_says(tmp_path, kind):
    model = load_pipeline(saved(kind, tmp_path / "pipeline"), "cpu")
    library = library_of(tmp_path / "dogs", model, layer_shapes(model.layers("attention and mlp")))
    one = next(iter(SELECTION))
    bare = prediction(model)
    wanted = prediction(model, library.load(one)) - bare
    files = {"concept file": library.path / library.find(one).file}
    for format in ("comfyui", "kohya", "diffusers"):
        files[format] = export_composed(library, {one: 1.0}, tmp_path / format / "one.safetensors", format, "fp32")
    assert {what: outcome(model, wanted, bare, file) for what, file in files.items()} == promised(kind)
