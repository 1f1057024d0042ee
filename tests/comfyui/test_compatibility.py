"""What docs/compatibility.md promises of ComfyUI, cell by cell; a whole SDXL's files in its own loader."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
from seqlora.io.safetensors_file import write_tensors  # noqa: E402
from seqlora.library.export import export_composed  # noqa: E402
from seqlora.library.manifest import Base  # noqa: E402
from seqlora.library.store import Library  # noqa: E402
from seqlora.library.writer import LibraryWriter  # noqa: E402
from seqlora.lora.layouts import PREFIX, diffusers_unet_names, layout_of  # noqa: E402
from seqlora.lora.targets import choose_layers, layer_shapes  # noqa: E402
from seqlora.lora.types import LoRAPair  # noqa: E402
from seqlora.lora.vectors import to_embedding  # noqa: E402
from seqlora.method.moments import Moments  # noqa: E402
from seqlora.method.trained import TrainedConcept  # noqa: E402
from tests.core.test_keys import SDXL, meta_unet  # noqa: E402
from tests.support.hosts import run_in_host  # noqa: E402

pytestmark = pytest.mark.host
PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
FILES = ("concept", "comfyui", "kohya", "diffusers")


@pytest.fixture(scope="module")
def sdxl(host: object, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What tests/comfyui/hostscripts/loading.py reports of a random concept on all layers that are taught, of its exports, and
    of an embedding."""
    folder, names = tmp_path_factory.mktemp("files"), diffusers_unet_names(SDXL)
    chosen = layer_shapes(choose_layers(meta_unet("sdxl"), "attention and mlp", prefix=""))
    shapes = {PREFIX + names[path]: shape for path, shape in chosen.items()}
    library = Library.create(tmp_path_factory.mktemp("library") / "dogs", rank=1, capacity=1, targets="attention and mlp")
    base = Base(layout_of(SDXL), {name: list(shape) for name, shape in shapes.items()})
    generator = torch.Generator().manual_seed(0)
    pairs = {
        name: LoRAPair(
            torch.randn(m, 1, generator=generator),
            torch.nn.functional.normalize(torch.randn(n, 1, generator=generator), dim=0),
        )
        for name, (m, n) in shapes.items()
    }
    trained = TrainedConcept(pairs, Moments({}, {}, {}), [])
    library = LibraryWriter(LibraryWriter(library).bind(base, None)).add("one", "zorv", "dog", trained, {})
    shutil.copy(library.path / library.find("one").file, folder / "concept.safetensors")
    for format in FILES[1:]:
        export_composed(library, {"one": 1.0}, Path(folder / f"{format}.safetensors"), format, "fp32")
    vectors = {"clip_l": torch.randn(2, 768, generator=generator)}
    write_tensors(folder / "embeddings" / "0001-one.safetensors", to_embedding(vectors))
    return run_in_host("loading.py", folder)


@pytest.mark.parametrize("file", FILES)
def test_a_whole_sdxl_is_read_by_the_hosts_own_loader(sdxl: dict, file: str):
    assert sdxl["shapes"]
    assert sdxl["told"][file] == {"layers": 722, "read": 722, "same": 722, "not loaded": []}


def test_an_exported_embedding_is_read_where_it_is_named(sdxl: dict):
    assert sdxl["embedding"] == {"vectors": 2, "same": True}


def cells() -> dict[str, dict[str, str]]:
    """File -> family -> what the page says."""
    section = PAGE.read_text(encoding="utf-8").split("## ComfyUI")[1].split("\n## ")[0]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    return {re.sub(r"export `(\w+)`", r"\1", row[0]): dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["SD 1.5", "SD3", "Flux"])
def test_the_host_reads_what_the_page_says(applied, family: str):
    told = applied(family.replace(" ", "").replace(".", "").lower())
    found = {"concept file": told["against_host"] <= 1e-5}
    for format in FILES[1:]:
        found[format] = told["exports"][f"{format} fp32"] <= 1e-5 and told["exports"][f"{format} fp16"] <= 1e-3
    assert {file: row[family] for file, row in cells().items()} == {
        file: "complete" if whole else "no names" for file, whole in found.items()
    }


def test_the_page_says_of_sdxl_what_its_files_showed():
    assert {file: row["SDXL"] for file, row in cells().items()} == dict.fromkeys(["concept file", *FILES[1:]], "complete")
