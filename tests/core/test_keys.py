"""Key names against the software they are for: diffusers, PEFT, and the host's own maps when there is a host."""

from __future__ import annotations

import functools
import itertools
import json
import re

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import nn

from seqlora.demo.micro import UNET_CONFIG
from seqlora.errors import SeqLoRAError
from seqlora.lora.formats import from_native, to_diffusers, to_kohya, to_native
from seqlora.lora.layouts import (
    TRANSFORMER,
    diffusers_unet_names,
    layout_from_native,
    layout_of,
    native_to_diffusers,
    unet_state_dict_to_native,
)
from seqlora.lora.targets import choose_layers, layer_shapes
from seqlora.lora.types import LoRAPair
from tests.support.hosts import run_in_host

diffusers = pytest.importorskip("diffusers")
from diffusers.utils import convert_unet_state_dict_to_peft  # noqa: E402

SD15 = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SSD1B = SDXL | {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [[0, 0], [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], [0, 0, 0]],
}
UNEVEN = UNET_CONFIG | {
    "block_out_channels": (32, 64, 64),
    "layers_per_block": (1, 3, 2),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": 2,
}
NO_MIDDLE = UNET_CONFIG | {"mid_block_type": None}
SMALL = UNET_CONFIG | {  # the UNet of hostscripts/keys_map.py
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "cross_attention_dim": 24,
    "attention_head_dim": (1, 2),
    "class_embed_type": None,
}
UNETS = {
    "sd15": SD15,
    "sdxl": SDXL,
    "ssd1b": SSD1B,
    "micro": UNET_CONFIG,
    "uneven": UNEVEN,
    "no_middle": NO_MIDDLE,
    "small": SMALL,
}
PREFIX = "diffusion_model."


@functools.cache
def meta_unet(name: str) -> nn.Module:
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**UNETS[name])


def concept_of(shapes: dict[str, tuple[int, int]], rank: int = 2) -> dict[str, LoRAPair]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: LoRAPair(torch.randn(m, rank, generator=generator), torch.randn(n, rank, generator=generator))
        for name, (m, n) in shapes.items()
    }


def unet_concept(name: str, rank: int = 2) -> dict[str, LoRAPair]:
    """A pair for every attention and MLP layer."""
    names = diffusers_unet_names(UNETS[name])
    layers = {k: m for k, m in meta_unet(name).named_modules() if ".transformer_blocks." in k and isinstance(m, nn.Linear)}
    return concept_of({PREFIX + names[k]: (m.out_features, m.in_features) for k, m in layers.items()}, rank)


def sd3_concept(rank: int = 2) -> dict[str, LoRAPair]:
    """Width 128; the last block's context has q, k and v only."""
    shapes = {}
    for i, side in itertools.product(range(2), ("x_block", "context_block")):
        block = f"{PREFIX}joint_blocks.{i}.{side}"
        shapes[f"{block}.attn.qkv"] = (384, 128)
        if (i, side) != (1, "context_block"):
            shapes |= {f"{block}.attn.proj": (128, 128), f"{block}.mlp.fc1": (512, 128), f"{block}.mlp.fc2": (128, 512)}
    return concept_of(shapes, rank)


def flux_concept(rank: int = 2, width: int = 128) -> dict[str, LoRAPair]:
    mlp = 4 * width
    single = f"{PREFIX}single_blocks.0"
    shapes = {f"{single}.linear1": (3 * width + mlp, width), f"{single}.linear2": (width, width + mlp)}
    for side in ("img", "txt"):
        block = f"{PREFIX}double_blocks.0.{side}"
        shapes |= {f"{block}_attn.qkv": (3 * width, width), f"{block}_attn.proj": (width, width)}
        shapes |= {f"{block}_mlp.0": (mlp, width), f"{block}_mlp.2": (width, mlp)}
    return concept_of(shapes, rank)


def tiny_sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        caption_projection_dim=128,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
    )


def tiny_flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(16, 56, 56),
    )


TRANSFORMERS = {"sd3": (sd3_concept, tiny_sd3), "flux": (flux_concept, tiny_flux)}


def assert_same(left: dict[str, LoRAPair], right: dict[str, LoRAPair]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(tuple(left[name]), tuple(right[name]), rtol=0, atol=0)


# UNet names


@pytest.mark.parametrize("name", UNETS)
def test_every_weight_of_a_diffusers_unet_has_one_native_name(name):
    config = UNETS[name]
    keys = list(meta_unet(name).state_dict())
    names = diffusers_unet_names(config)
    paths = {key.rpartition(".")[0] for key in keys}
    assert paths <= names.keys()
    assert all(path.endswith("conv_shortcut") for path in names.keys() - paths)
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_layout_is_the_same_from_either_side_and_survives_json(name, prefix):
    config = UNETS[name]
    native = unet_state_dict_to_native(meta_unet(name).state_dict(), config)
    layout = layout_from_native(prefix + key for key in native)
    assert layout == layout_of(config) == json.loads(json.dumps(layout))
    assert layout == layout_from_native(prefix + key.rpartition(".")[0] for key in native)


def test_layout_of_fills_in_diffusers_defaults():
    with torch.device("meta"):
        assert layout_of(diffusers.UNet2DConditionModel().config) == layout_of({}) == layout_of(SD15)


def test_state_dict_conversion_shares_tensors_and_names_a_stranger():
    weights = diffusers.UNet2DConditionModel(**SMALL).state_dict()
    native = unet_state_dict_to_native(weights, SMALL)
    assert len(native) == len(weights)
    assert native["input_blocks.0.0.weight"] is weights["conv_in.weight"]
    assert native["output_blocks.1.2.conv.bias"] is weights["up_blocks.0.upsamplers.0.conv.bias"]
    with pytest.raises(SeqLoRAError, match="'down_blocks.7.resnets.0.norm1.weight'"):
        unet_state_dict_to_native({"down_blocks.7.resnets.0.norm1.weight": torch.zeros(1)}, SMALL)


@pytest.mark.parametrize(
    "change",
    [
        {"down_block_types": ("AttnDownBlock2D", "DownBlock2D")},
        {"up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D")},
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
    ],
)
def test_block_types_without_counterpart_are_refused(change):
    with pytest.raises(SeqLoRAError, match="block type '(AttnDown|SimpleCrossAttnUp|UNetMid)Block2D.*does not exist"):
        layout_of(UNET_CONFIG | change)


def test_unknown_models_are_other_and_still_have_kohya_names():
    hunyuan = ["img_in.proj.weight", "double_blocks.0.img_mod.lin.weight", "single_blocks.0.linear1.weight", "img_in.weight"]
    for names in (hunyuan, [], ["blocks.0.attn.qkv.weight"], list(unet_concept("small"))):
        assert layout_from_native(names) == {"family": "other"}
    concept = concept_of({f"{PREFIX}blocks.0.attn.qkv": (12, 4)})
    assert "lora_unet_blocks_0_attn_qkv.alpha" in to_kohya(concept, {"family": "other"})
    with pytest.raises(SeqLoRAError, match="'diffusion_model.blocks.0.attn.qkv' has no diffusers name"):
        to_diffusers(concept, {"family": "other"})


# concepts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 3])
def test_native_round_trip_through_a_file_is_exact(rank, dtype):
    concept = {name: LoRAPair(a.to(dtype), b.to(dtype)) for name, (a, b) in unet_concept("small", rank).items()}
    tensors = load(save(to_native(concept)))
    assert len(tensors) == 3 * len(concept)
    name = f"{PREFIX}input_blocks.3.1.transformer_blocks.0.attn1.to_q"
    assert tensors[f"{name}.lora_down.weight"].shape == (rank, 64)
    assert tensors[f"{name}.lora_up.weight"].shape == (64, rank)
    alpha = tensors[f"{name}.alpha"]
    assert (alpha.shape, alpha.dtype, alpha.item()) == ((), torch.float32, rank)
    assert_same(from_native(tensors), concept)


def test_alpha_is_folded_into_the_coefficients():
    name = f"{PREFIX}joint_blocks.0.x_block.attn.qkv"
    tensors = to_native(concept_of({name: (6, 2)}))
    halved = from_native(tensors | {f"{name}.alpha": torch.tensor(1.0)})[name]
    torch.testing.assert_close(halved.up, tensors[f"{name}.lora_up.weight"] / 2)
    torch.testing.assert_close(halved.basis, tensors[f"{name}.lora_down.weight"].T)
    del tensors[f"{name}.alpha"]
    torch.testing.assert_close(from_native(tensors)[name].up, tensors[f"{name}.lora_up.weight"])


L = f"{PREFIX}blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{L}.dora_scale": torch.ones(4)}, f"'{L}.dora_scale'"),
        ({"lora_unet_blocks_0_attn_to_q.lora_up.weight": torch.ones(4, 2)}, "'lora_unet_blocks_0_attn_to_q.lora_up.weight'"),
        ({f"{L}.lora_up.weight": None}, f"'{L}.lora_up.weight' is missing"),
        ({f"{L}.lora_down.weight": None}, f"'{L}.lora_down.weight' is missing"),
        ({f"{L}.lora_up.weight": None, f"{L}.lora_down.weight": None}, f"'{L}.lora_up.weight' is missing beside '{L}.alpha'"),
        ({f"{L}.lora_up.weight": torch.ones(4, 3)}, f"'{L}.lora_up.weight' is (4, 3)"),
        ({f"{L}.lora_down.weight": torch.ones(2, 3, 1, 1)}, "(2, 3, 1, 1)"),
        ({f"{L}.lora_up.weight": torch.ones(4, 0), f"{L}.lora_down.weight": torch.ones(0, 3)}, "(4, 0)"),
        ({f"{L}.alpha": torch.ones(2)}, f"'{L}.alpha'"),
        ({f"{L}.alpha": torch.tensor(float("nan"))}, f"'{L}.alpha'"),
    ],
)
def test_damaged_native_tensors_are_refused_by_key(change, message):
    tensors = {k: v for k, v in (to_native(concept_of({L: (4, 3)})) | change).items() if v is not None}
    with pytest.raises(SeqLoRAError, match=re.escape(message)):
        from_native(tensors)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_fused_layers_split_into_rows_that_rejoin(family):
    concept = TRANSFORMERS[family][0]()
    parts = native_to_diffusers(concept, {"family": family})
    if family == "sd3":
        name, split = (
            f"{PREFIX}joint_blocks.1.context_block.attn.qkv",
            [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        )
    else:
        name, block = f"{PREFIX}single_blocks.0.linear1", "single_transformer_blocks.0"
        split = [f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp"]
    torch.testing.assert_close(torch.cat([parts[part].up for part in split]), concept[name].up, rtol=0, atol=0)
    assert all(parts[part].basis is concept[name].basis for part in split)


@pytest.mark.parametrize(
    ("layout", "name", "shape", "message"),
    [
        ({"family": "sd3"}, "joint_blocks.0.x_block.adaLN_modulation.1", (6, 4), "no diffusers name"),
        ({"family": "sd3"}, "final_layer.adaLN_modulation.1", (8, 4), "no diffusers name"),
        ({"family": "flux"}, "final_layer.linear", (8, 4), "no diffusers name"),
        ({"family": "flux"}, "double_blocks.0.img_attn.qkv", (13, 4), "13 x 4"),
        ({"family": "flux"}, "single_blocks.0.linear1", (12, 4), "12 x 4"),
        (layout_of(SMALL), "input_blocks.1.1.proj_in", (4, 4), "no diffusers name"),
        (layout_of(SMALL), "middle_block.1.transformer_blocks.1.attn1.to_q", (4, 4), "no diffusers name"),
    ],
)
def test_layers_without_a_diffusers_name_are_refused(layout, name, shape, message):
    with pytest.raises(SeqLoRAError, match=message):
        native_to_diffusers(concept_of({PREFIX + name: shape}), layout)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_format_can_be_saved(family, rank):
    concept, layout = TRANSFORMERS[family][0](rank), {"family": family}
    for tensors in (to_native(concept), to_kohya(concept, layout), to_diffusers(concept, layout)):
        assert load(save(tensors)).keys() == tensors.keys()


# diffusers takes the export


@pytest.mark.parametrize("name", ["small", "uneven", "sd3", "flux"])
def test_diffusers_applies_the_export_with_scale_one(name):
    pytest.importorskip("peft")
    if name in TRANSFORMERS:
        concept, model = (make() for make in TRANSFORMERS[name])
        layout, prefix = {"family": name}, "transformer"
    else:
        concept, model = unet_concept(name), diffusers.UNet2DConditionModel(**UNETS[name])
        layout, prefix = layout_of(UNETS[name]), "unet"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_lora_adapter(to_diffusers(concept, layout), prefix=prefix)
    model.fuse_lora()
    model.unload_lora()
    pairs = native_to_diffusers(concept, layout)
    after = model.state_dict()
    assert after.keys() == before.keys()
    for key, old in before.items():
        path = key.removesuffix(".weight")
        delta = pairs[path].up @ pairs[path].basis.T if path in pairs else torch.zeros_like(old)
        torch.testing.assert_close(after[key], old + delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "micro", "flux"])
def test_diffusers_reads_the_kohya_export_as_its_own(name):
    loaders = diffusers.loaders.lora_pipeline
    if name == "flux":
        concept, layout = flux_concept(width=3072), {"family": "flux"}  # diffusers expects the width of the real model here
        read, alphas = loaders.FluxLoraLoaderMixin.lora_state_dict(to_kohya(concept, layout)), {}
    else:
        concept, layout = unet_concept(name), layout_of(UNETS[name])
        loader = loaders.StableDiffusionXLLoraLoaderMixin if layout["label_emb"] else loaders.StableDiffusionLoraLoaderMixin
        read, alphas = loader.lora_state_dict(to_kohya(concept, layout), unet_config=meta_unet(name).config)[:2]
        read = convert_unet_state_dict_to_peft(read)
    expected = to_diffusers(concept, layout)
    expected = expected if name == "flux" else convert_unet_state_dict_to_peft(expected)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[key], expected[key]) for key in expected)
    assert all(alpha == 2 for alpha in alphas.values())


# the host takes the export


@pytest.fixture(scope="module")
def host_maps(host, tmp_path_factory):
    """What hostscripts/keys_map.py reports, and what diffusers and the host make of the same UNet and input."""
    folder = tmp_path_factory.mktemp("keys")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**SMALL).eval()
    inputs = {"x": torch.randn(2, 4, 16, 16), "timesteps": torch.tensor([7.0, 801.0]), "context": torch.randn(2, 5, 24)}
    native = unet_state_dict_to_native(unet.state_dict(), SMALL)
    save_file(native | {f"input.{key}": value for key, value in inputs.items()}, folder / "unet.safetensors")
    maps = run_in_host("keys_map.py", folder)
    with torch.no_grad():
        expected = unet(inputs["x"], inputs["timesteps"], inputs["context"]).sample
    return maps | {"outputs": (load_file(folder / "out.safetensors")["out"], expected)}


@pytest.mark.host
def test_the_same_unet_computes_the_same_in_the_host(host_maps):
    native, expected = host_maps["outputs"]
    assert expected.std() > 0.05
    torch.testing.assert_close(native, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "sdxl", "ssd1b"])
def test_unet_names_agree_with_the_host(host_maps, name):
    shapes, names = host_maps[name]["shapes"], host_maps[name]["names"]
    ours = diffusers_unet_names(UNETS[name])
    unet = {key: list(value.shape) for key, value in meta_unet(name).state_dict().items()}
    assert layout_from_native(shapes) == layout_of(UNETS[name])
    renamed = {f"{PREFIX}{ours[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": shape for key, shape in unet.items()}
    assert renamed == {key: shape for key, shape in shapes.items() if key.startswith(PREFIX)}
    for path in {key.rpartition(".")[0] for key in unet}:
        assert names["lora_unet_" + path.replace(".", "_")] == [f"{PREFIX}{ours[path]}.weight"]


def as_applied(tensors: dict, names: dict, shapes: dict, up: str, down: str) -> dict[str, LoRAPair]:
    """What the host would add to each weight, by its own map; a key that it does not know fails."""
    pairs: dict[str, LoRAPair] = {}
    for key in tensors:
        if not key.endswith(up):
            continue
        target, *rows = names[key.removesuffix(up)]
        a, b = tensors[key], tensors[key.removesuffix(up) + down].T
        m, n = shapes[target]
        whole = pairs.setdefault(target.removesuffix(".weight"), LoRAPair(torch.zeros(m, a.shape[1]), b))
        first, count = rows or (0, m)
        assert len(a) == count and len(b) == n and torch.equal(whole.basis, b)
        whole.up[first : first + count] += a
    return pairs


FORMATS = list(itertools.product(["sd15", "sdxl", "sd3", "flux"], ["native", "kohya", "diffusers"]))


@pytest.mark.host
@pytest.mark.parametrize(("name", "format"), FORMATS)
def test_the_host_applies_every_format_to_the_right_rows(host_maps, name, format):
    shapes, names = host_maps[name]["shapes"], host_maps[name]["names"]
    layout = layout_from_native(shapes)
    concept = TRANSFORMERS[name][0]() if name in TRANSFORMERS else unet_concept(name)
    if format == "diffusers" and name in TRANSFORMERS:
        pairs = as_applied(to_diffusers(concept, layout), names, shapes, ".lora_B.weight", ".lora_A.weight")
    elif format == "diffusers":  # the two endings that the host's loader knows from before PEFT
        tensors = {
            re.sub(r"[._]lora\.(up|down)\.weight", r".\1", key): tensor for key, tensor in to_diffusers(concept, layout).items()
        }
        pairs = as_applied(tensors, names, shapes, ".up", ".down")
    else:
        tensors = to_native(concept) if format == "native" else to_kohya(concept, layout)
        pairs = as_applied(tensors, names, shapes, ".lora_up.weight", ".lora_down.weight")
    assert_same(pairs, concept)


@pytest.mark.host
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_host_knows_the_layers_of_a_headless_transformer(host_maps, name):
    names, shapes = host_maps[name]["names"], host_maps[name]["shapes"]
    layers = choose_layers(TRANSFORMERS[name][1](), "attention and mlp", prefix=TRANSFORMER)
    concept = concept_of(layer_shapes(layers))
    for tensors in (to_native(concept), to_kohya(concept, {"family": name})):
        targets = [names[key.removesuffix(".alpha")] for key in tensors if key.endswith(".alpha")]
        for (target, *rows), (m, n) in zip(targets, layer_shapes(layers).values(), strict=True):
            assert [rows[1] if rows else shapes[target][0], shapes[target][1]] == [m, n]
    assert from_native(to_native(concept)).keys() == concept.keys()
