"""The one header of concept files and exports: what programs that list LoRAs read."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from seqlora.library.export import export_composed
from seqlora.library.manifest import Base
from seqlora.library.store import Library
from seqlora.library.writer import LibraryWriter
from seqlora.lora.layouts import layout_of
from seqlora.lora.types import LoRAPair
from seqlora.method.moments import Moments
from seqlora.method.trained import TrainedConcept
from tests.core.test_keys import UNETS

# Text width of a UNet, or family: modelspec's name and kohya's.
NAMES = {
    768: ("stable-diffusion-v1", "sd_v1"),
    1024: ("stable-diffusion-v2", "sd_v2"),
    2048: ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "sd3": ("stable-diffusion-3", "sd3"),
    "flux": ("flux-1-dev", "flux1"),
    "other": ("other", "other"),
}
BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize("kind", NAMES)
def test_a_concept_file_and_its_export_say_the_same(tmp_path, kind):
    shapes = {BLOCK: (320, kind)} if isinstance(kind, int) else {"diffusion_model.blocks.0.attn": (8, 8)}
    layout = layout_of(UNETS["small"]) if isinstance(kind, int) else {"family": kind}
    library = LibraryWriter(Library.create(tmp_path / "dogs", 2, 1, "attention")).bind(Base(layout, shapes), None)
    pairs = {name: LoRAPair(torch.rand(m, 2), torch.eye(n, 2)) for name, (m, n) in shapes.items()}
    concept = TrainedConcept(pairs, Moments({}, {}, {}), [])
    library = LibraryWriter(library).add("rex", "zorv", "dog", concept, {})
    headers = []
    for file in (library.path / library.find("rex").file, export_composed(library, {"rex": 1.0}, tmp_path / "rex.safetensors")):
        with safe_open(file, "pt") as opened:
            headers.append(opened.metadata())
    for header in headers:
        assert (header["modelspec.architecture"], header["ss_base_model_version"]) == (f"{NAMES[kind][0]}/lora", NAMES[kind][1])
        assert header["modelspec.trigger_phrase"] == "zorv dog" and header["modelspec.title"] == "rex"
        assert header["ss_network_dim"] == header["ss_network_alpha"] == "2"
    ours = {name for name in headers[0] if name.startswith(("modelspec.", "ss_"))}
    assert ours == {name for name in headers[1] if name.startswith(("modelspec.", "ss_"))}
