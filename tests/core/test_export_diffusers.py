"""An exported file does in diffusers' own pipelines what the library does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from seqlora.backends.load import load_pipeline  # noqa: E402
from seqlora.backends.pipelines import PipelineModel  # noqa: E402
from seqlora.library.export import export_composed  # noqa: E402
from seqlora.library.manifest import Base  # noqa: E402
from seqlora.library.store import Library  # noqa: E402
from seqlora.library.writer import LibraryWriter
from seqlora.lora.formats import from_native, to_kohya, to_native  # noqa: E402
from seqlora.lora.layouts import PREFIX, TRANSFORMER, native_to_diffusers  # noqa: E402
from seqlora.lora.targets import layer_shapes  # noqa: E402
from seqlora.lora.types import LoRAPair  # noqa: E402
from seqlora.method.moments import Moments  # noqa: E402
from seqlora.method.trained import TrainedConcept  # noqa: E402
from tests.support.tiny_pipelines import saved  # noqa: E402

SELECTION = {"one": 1.0, "two": -0.5}
NATIVE = {  # ComfyUI's layers of the tiny transformers: name -> the diffusers layers whose rows they hold
    "sd3": {
        "joint_blocks.0.x_block.attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
        "joint_blocks.0.x_block.attn.proj": ["transformer_blocks.0.attn.to_out.0"],
        "joint_blocks.0.x_block.mlp.fc1": ["transformer_blocks.0.ff.net.0.proj"],
        "joint_blocks.1.context_block.attn.qkv": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        "joint_blocks.0.context_block.attn.proj": ["transformer_blocks.0.attn.to_add_out"],
        "joint_blocks.0.context_block.mlp.fc2": ["transformer_blocks.0.ff_context.net.2"],
    },
    "flux": {
        "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
        "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
        "double_blocks.0.img_mlp.2": ["transformer_blocks.0.ff.net.2"],
        "single_blocks.0.linear1": [
            f"single_transformer_blocks.0.{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        ],
        "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
    },
}


def random_concept(shapes: dict[str, tuple[int, int]], seed: int, rank: int = 3) -> dict[str, LoRAPair]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LoRAPair(
            0.3 * torch.randn(m, rank, generator=generator),
            torch.linalg.qr(torch.randn(n, rank, generator=generator))[0].contiguous(),
        )
        for name, (m, n) in shapes.items()
    }


def native_shapes(model: PipelineModel) -> dict[str, tuple[int, int]]:
    modules: dict[str, Any] = dict(model.network.named_modules())
    return {
        PREFIX + native: (sum(modules[part].out_features for part in parts), modules[parts[0]].in_features)
        for native, parts in NATIVE[model.layout["family"]].items()
    }


def library_of(path: Path, model: PipelineModel, shapes: dict[str, tuple[int, int]]) -> Library:
    library = Library.create(path, rank=3, capacity=1, targets="attention and mlp")
    library = LibraryWriter(library).bind(Base(dict(model.layout), {name: list(shape) for name, shape in shapes.items()}), None)
    for seed, name in enumerate(SELECTION):
        library = LibraryWriter(library).add(
            name, f"zyx{seed}", "dog", TrainedConcept(random_concept(shapes, seed), Moments({}, {}, {}), []), {}
        )
    return library


@torch.no_grad()
def prediction(model: PipelineModel, composed: dict[str, LoRAPair] | None = None) -> torch.Tensor:
    x = torch.randn(2, model.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(3))
    cond = model.encode_captions(["a photo of zyx0 dog", "a cat"])
    with model.using(composed or {}):
        return model.denoiser(x, torch.tensor([0.4, 0.9]), cond)


def error_of_the_change(model: PipelineModel, library: Library, file: Path) -> float:
    """How far the change that diffusers makes of the file is from the library's own, relative to it."""
    bare = prediction(model)
    wanted = prediction(model, library.compose(SELECTION)) - bare
    # The denoiser calls the pipeline's own network, so it sees what PEFT puts into it.
    model.pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    try:
        change = prediction(model) - bare
    finally:
        model.pipe.unload_lora_weights()
    assert torch.equal(prediction(model), bare) and wanted.norm() > 1e-2 * bare.norm()
    return float((change - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module", params=["sd", "sd v", "sdxl", "sd3", "flux"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PipelineModel:
    return load_pipeline(saved(request.param, tmp_path_factory.mktemp("pipeline")), "cpu")


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-5), ("fp16", 1e-3)])
def test_a_headless_library_exported_for_diffusers_acts_as_it_does(model, tmp_path, dtype, limit):
    library = library_of(tmp_path / "dogs", model, layer_shapes(model.layers("attention and mlp")))
    file = export_composed(library, SELECTION, tmp_path / "dogs.safetensors", "diffusers", dtype)
    assert error_of_the_change(model, library, file) < limit


# Of a transformer's layers diffusers reads few by other names than its own; test_keys.py asks the host about them.
@pytest.mark.parametrize("model", ["sd", "sd v", "sdxl"], indirect=True)
def test_a_headless_library_exported_for_kohya_acts_as_it_does(model, tmp_path):
    library = library_of(tmp_path / "dogs", model, layer_shapes(model.layers("attention and mlp")))
    file = export_composed(library, SELECTION, tmp_path / "dogs.safetensors", "kohya", "fp32")
    assert error_of_the_change(model, library, file) < 1e-5


@pytest.mark.parametrize("model", ["sd3", "flux"], indirect=True)
def test_a_library_from_comfyui_exported_for_diffusers_acts_as_it_does(model, tmp_path):
    library = library_of(tmp_path / "dogs", model, native_shapes(model))
    file = export_composed(library, SELECTION, tmp_path / "dogs.safetensors", "diffusers", "fp32")
    assert error_of_the_change(model, library, file) < 1e-5


@pytest.mark.parametrize("model", ["sd3", "flux"], indirect=True)
@torch.no_grad()
def test_a_library_from_comfyui_acts_on_the_rows_it_was_taught_on(model, tmp_path):
    library = library_of(tmp_path / "dogs", model, native_shapes(model))
    composed, bare = library.compose(SELECTION), prediction(model)
    wanted = prediction(model, composed) - bare
    modules: dict[str, Any] = dict(model.network.named_modules())
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    for native, parts in NATIVE[model.layout["family"]].items():
        pair = composed[PREFIX + native]
        rows = (pair.up @ pair.basis.T).split([modules[part].out_features for part in parts])
        for part, change in zip(parts, rows, strict=True):
            modules[part].weight += change
    change = prediction(model) - bare
    model.network.load_state_dict(before)
    assert (change - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize("model", ["sd3", "flux"], indirect=True)
def test_names_of_a_headless_transformer_pass_through(model):
    concept = random_concept(layer_shapes(model.layers("attention and mlp")), 0)
    assert all(name.startswith(TRANSFORMER) for name in concept)
    assert from_native(to_native(concept)).keys() == concept.keys()
    assert {TRANSFORMER + path for path in native_to_diffusers(concept, model.layout)} == concept.keys()
    assert {key.partition(".")[0] for key in to_kohya(concept, model.layout)} == {
        "lora_" + name.replace(".", "_") for name in concept
    }
