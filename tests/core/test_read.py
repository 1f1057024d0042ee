"""LoRA files made elsewhere are read as what they do to the weights."""

from __future__ import annotations

import pytest
import torch

from seqlora.demo.micro import UNET_CONFIG
from seqlora.errors import SeqLoRAError
from seqlora.lora.formats import to_diffusers, to_kohya, to_native
from seqlora.lora.layouts import diffusers_unet_names, layout_of, native_to_diffusers
from seqlora.lora.read import read_lora
from seqlora.lora.types import LoRAPair

FLUX = {"family": "flux"}
FLUX_SHAPES = {
    "diffusion_model.double_blocks.0.img_attn.qkv": (24, 8),
    "diffusion_model.double_blocks.0.img_mlp.0": (32, 8),
    "diffusion_model.single_blocks.0.linear1": (56, 8),
}
UNET = layout_of(UNET_CONFIG)
UNET_SHAPES = {
    f"diffusion_model.{native}": (6 + i % 3, 4 + i % 2)
    for i, native in enumerate(n for p, n in diffusers_unet_names(UNET_CONFIG).items() if "attn" in p or ".ff." in p)
}


def concept(shapes, seed=0, rank=2):
    g = torch.Generator().manual_seed(seed)
    return {
        name: LoRAPair(torch.randn(m, rank, generator=g), torch.randn(n, rank, generator=g)) for name, (m, n) in shapes.items()
    }


def assert_same_change(found, wanted):
    assert list(found) == list(wanted)
    for name, pair in wanted.items():
        torch.testing.assert_close(found[name].up @ found[name].basis.T, pair.up @ pair.basis.T)


@pytest.mark.parametrize("shapes, layout", [(UNET_SHAPES, UNET), (FLUX_SHAPES, FLUX)], ids=["unet", "flux"])
@pytest.mark.parametrize(
    "write", [lambda c, layout: to_native(c), to_kohya, to_diffusers], ids=["native", "kohya", "diffusers"]
)
def test_every_export_is_read_back(shapes, layout, write):
    taught = concept(shapes)
    read = read_lora(write(taught, layout), shapes, layout)
    assert_same_change(read.change, taught)
    assert not read.left_out


def test_peft_names_of_a_unet():
    taught = concept(UNET_SHAPES)
    tensors = {}
    for path, (up, basis) in native_to_diffusers(taught, UNET).items():
        tensors[f"unet.{path}.lora_A.weight"], tensors[f"unet.{path}.lora_B.weight"] = basis.T, up
    assert_same_change(read_lora(tensors, UNET_SHAPES, UNET).change, taught)


def test_parts_of_a_fused_layer_with_bases_of_their_own_become_one_pair():
    g = torch.Generator().manual_seed(1)
    name, whole = "diffusion_model.double_blocks.0.img_attn.qkv", torch.zeros(24, 8)
    tensors = {}
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        down, up = torch.randn(2, 8, generator=g), torch.randn(8, 2, generator=g)
        stem = f"transformer.transformer_blocks.0.attn.{part}"
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = down, up
        whole[8 * i : 8 * i + 8] = up @ down
    change = read_lora(tensors, FLUX_SHAPES, FLUX).change
    assert list(change) == [name] and change[name].up.shape == (24, 6)
    torch.testing.assert_close(change[name].up @ change[name].basis.T, whole)


def test_alpha_scales_and_other_layers_are_named():
    name = next(iter(UNET_SHAPES))
    m, n = UNET_SHAPES[name]
    tensors = to_native({name: LoRAPair(torch.ones(m, 2), torch.ones(n, 2))})
    tensors[f"{name}.alpha"] = torch.tensor(1.0)
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.ones(3, 2)
    read = read_lora(tensors, UNET_SHAPES, UNET)
    torch.testing.assert_close(read.change[name].up @ read.change[name].basis.T, torch.ones(m, n))
    assert read.left_out == ["lora_te_text_model_encoder_layers_0_mlp_fc1"]


NAME = next(iter(UNET_SHAPES))
M, N = UNET_SHAPES[NAME]


def pair_of(up, down):
    return {f"{NAME}.lora_up.weight": up, f"{NAME}.lora_down.weight": down}


@pytest.mark.parametrize(
    "tensors, said",
    [
        ({f"{NAME}.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
        (pair_of(torch.ones(M, 2), torch.ones(2, N)) | {f"{NAME}.dora_scale": torch.ones(M)}, "DoRA"),
        ({"diffusion_model.blocks.0.lora_up.weight": torch.ones(2, 2)}, "none of the layers"),
        ({}, "none of the layers"),
        ({f"{NAME}.lora_up.weight": torch.ones(M, 2)}, "lacks its down matrix"),
        (pair_of(torch.ones(M, 2), torch.ones(2, N + 1)), f"the layer is {M} x {N}"),
        (pair_of(torch.ones(M, 2) / 0, torch.ones(2, N)), "not numbers"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tensors, said):
    with pytest.raises(SeqLoRAError, match=said):
        read_lora(tensors, UNET_SHAPES, UNET)
