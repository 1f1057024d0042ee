"""How a model's layers are named elsewhere.

Everywhere else a layer is called by its ComfyUI-native name, `diffusion_model.<module path>`, and a concept is a
`dict[str, LoRAPair]` of such names with alpha = r (scale 1). A *layout* says how a model's native names translate. It is a
small JSON-able dict that a library stores, so that export needs no model:

    {"family": "unet", "down": [[1, 1], [0, 0]], "mid": 1, "up": [[0, 0, 0], [1, 1, 1]], "label_emb": False}
    {"family": "sd3"}   {"family": "flux"}   {"family": "other"}

A UNet's `down` and `up` list, per level in diffusers' order, the transformer depth beside every resnet (0 = no attention).
`mid` is the depth in the middle, 0 for one resnet without attention, None for no middle block. `other` is any model that
diffusers' names are not known for: its concepts still have native and kohya names.

diffusers' SD3 and Flux transformers have q, k and v apart where ComfyUI's have one layer, so a concept taught to them without
ComfyUI has one basis each and no native name. Its layers are called `transformer.<diffusers module path>`, which ComfyUI's
own LoRA loader reads as well; every format takes such names beside native ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from torch import Tensor

from ..errors import SeqLoRAError
from .types import LoRAPair

PREFIX = "diffusion_model."
TRANSFORMER = "transformer."  # in front of diffusers' own paths
# diffusers -> native, below a resnet
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# the same in both worlds
ATTENTION = ("norm", "proj_in", "proj_out")
TRANSFORMER_BLOCK = ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2") + tuple(
    f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
)
UNET_OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
LABEL_EMB = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
# native -> diffusers, inside a numbered block. Several names: the native layer is fused, its rows are theirs in this order.
# Modulation (adaLN) is never adapted, and diffusers orders some of its rows differently: no names here.
SD3_JOINT = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
TRANSFORMERS = {  # family -> native block list -> its name in diffusers, and what is in a block
    "sd3": {"joint_blocks": ("transformer_blocks", SD3_JOINT)},
    "flux": {
        "double_blocks": ("transformer_blocks", FLUX_DOUBLE),
        "single_blocks": ("single_transformer_blocks", FLUX_SINGLE),
    },
}


def layout_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The layout of a diffusers `UNet2DConditionModel` with this configuration; its defaults stand in for missing keys.

    Raises SeqLoRAError for a block type that ComfyUI's UNet has no counterpart for.
    """
    down_types = config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    up_types = config.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    mid_type = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    resnets = _each(config.get("layers_per_block", 2), len(down_types))
    depths = _each(config.get("transformer_layers_per_block", 1), len(down_types))
    up_depths = config.get("reverse_transformer_layers_per_block") or depths[::-1]

    def level(kind: str, plain: str, attention: str, length: int, depth: int | Sequence[int]) -> list[int]:
        if kind not in (plain, attention):
            raise SeqLoRAError(f"UNet block type {kind!r} does not exist in ComfyUI's UNet", f"use {plain} or {attention}")
        return _each(depth, length) if kind == attention else [0] * length

    ups = zip(up_types, resnets[::-1], up_depths, strict=True)
    down = [level(k, "DownBlock2D", "CrossAttnDownBlock2D", n, d) for k, n, d in zip(down_types, resnets, depths, strict=True)]
    up = [level(k, "UpBlock2D", "CrossAttnUpBlock2D", n + 1, d) for k, n, d in ups]
    mid = level(mid_type, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn", 1, depths[-1])[0] if mid_type is not None else None
    label_emb = config.get("addition_embed_type") == "text_time" or config.get("class_embed_type") == "projection"
    return {"family": "unet", "down": down, "mid": mid, "up": up, "label_emb": label_emb}


def _each(value: Any, length: int) -> list[Any]:
    return [value] * length if isinstance(value, int) else list(value)


def layout_from_native(names: Iterable[str]) -> dict[str, Any]:
    """The layout of the model whose module names or state dict keys these are, with or without `diffusion_model.`.

    Needs the whole model's names, not only those of adapted layers. A model it does not know is `{"family": "other"}`.
    """
    paths = {""}
    for name in names:
        path = name.removeprefix(PREFIX)
        while path not in paths:
            paths.add(path)
            path = path.rpartition(".")[0]
    if "joint_blocks.0.context_block.attn.qkv" in paths:
        return {"family": "sd3"}
    # HunyuanVideo (img_in.proj), Chroma and Flux 2 (no modulation in a block) share Flux's block names, not diffusers' classes
    if {"img_in", "double_blocks.0.img_mod.lin", "single_blocks.0.linear1"} <= paths and "img_in.proj" not in paths:
        return {"family": "flux"}
    layout = _unet_layout(paths)
    if all(native in paths or native.endswith(RESNET["conv_shortcut"]) for native in _unet_names(layout).values()):
        return layout
    return {"family": "other"}


def _unet_layout(paths: set[str]) -> dict[str, Any]:
    def depth(block: str) -> int:
        return next(t for t in count() if f"{block}.1.transformer_blocks.{t}" not in paths)

    down: list[list[int]] = [[]]
    for i in count(1):
        block = f"input_blocks.{i}"
        if f"{block}.0.op" in paths:
            down.append([])
        elif block in paths:
            down[-1].append(depth(block))
        else:
            break
    outputs = count()
    up = [[depth(f"output_blocks.{next(outputs)}") for _ in range(len(level) + 1)] for level in reversed(down)]
    mid = depth("middle_block") if "middle_block" in paths else None
    return {"family": "unet", "down": down, "mid": mid, "up": up, "label_emb": "label_emb.0" in paths}


def diffusers_unet_names(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers module path -> ComfyUI `UNetModel` module path, for every module with weights of the UNet so configured.

    Paths have no `diffusion_model.` in front. Every resnet is listed with a shortcut, though not every one has it.
    Raises SeqLoRAError as `layout_of` does.
    """
    names = _unet_names(layout_of(config))
    if config.get("class_embed_type") == "projection":  # diffusers has two names for what ComfyUI calls label_emb
        names = {path.replace("add_embedding.", "class_embedding."): native for path, native in names.items()}
    return names


def _unet_names(layout: Mapping[str, Any]) -> dict[str, str]:
    names = dict(UNET_OUTER)
    if layout["label_emb"]:
        names |= LABEL_EMB

    def resnet(diffusers: str, native: str) -> None:
        names.update({f"{diffusers}.{theirs}": f"{native}.{ours}" for theirs, ours in RESNET.items()})

    def attention(diffusers: str, native: str, depth: int) -> None:
        layers = [f"transformer_blocks.{t}.{layer}" for t in range(depth) for layer in TRANSFORMER_BLOCK]
        if depth:
            names.update({f"{diffusers}.{layer}": f"{native}.{layer}" for layer in [*ATTENTION, *layers]})

    inputs = count(1)
    for level, depths in enumerate(layout["down"]):
        for i, depth in enumerate(depths):
            block = f"input_blocks.{next(inputs)}"
            resnet(f"down_blocks.{level}.resnets.{i}", f"{block}.0")
            attention(f"down_blocks.{level}.attentions.{i}", f"{block}.1", depth)
        if level < len(layout["down"]) - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{next(inputs)}.0.op"

    if layout["mid"] is not None:
        resnet("mid_block.resnets.0", "middle_block.0")
        if layout["mid"]:
            attention("mid_block.attentions.0", "middle_block.1", layout["mid"])
            resnet("mid_block.resnets.1", "middle_block.2")

    outputs = count()
    for level, depths in enumerate(layout["up"]):
        for i, depth in enumerate(depths):
            block = f"output_blocks.{next(outputs)}"
            resnet(f"up_blocks.{level}.resnets.{i}", f"{block}.0")
            attention(f"up_blocks.{level}.attentions.{i}", f"{block}.1", depth)
        if level < len(layout["up"]) - 1:
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"{block}.{2 if depths[-1] else 1}.conv"
    return names


def unet_state_dict_to_native(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a diffusers `UNet2DConditionModel` under the names of ComfyUI's `UNetModel`; the tensors are shared.

    Raises SeqLoRAError for a weight that the configuration does not explain.
    """
    names = diffusers_unet_names(config)
    native = {}
    for key, tensor in state_dict.items():
        path, _, kind = key.rpartition(".")
        if path not in names:
            raise SeqLoRAError(f"UNet weight {key!r} has no ComfyUI name", "check that the configuration belongs to it")
        native[f"{names[path]}.{kind}"] = tensor
    return native


def native_to_diffusers(concept: Mapping[str, LoRAPair], layout: Mapping[str, Any]) -> dict[str, LoRAPair]:
    """The concept by diffusers module path. A fused layer becomes several: rows of its A, each with the same B.
    A layer that has a diffusers name already keeps it.

    Raises SeqLoRAError for a layer that diffusers has no name for.
    """
    unet = {native: path for path, native in _unet_names(layout).items()} if layout["family"] == "unet" else {}
    out = {}
    for name, pair in concept.items():
        if name.startswith(TRANSFORMER) and layout["family"] in TRANSFORMERS:
            out[name.removeprefix(TRANSFORMER)] = pair
            continue
        path = name.removeprefix(PREFIX)
        names = (unet[path],) if path in unet else _transformer_names(path, layout["family"])
        if not names:
            raise SeqLoRAError(f"Layer {name!r} has no diffusers name (model family {layout['family']!r})", "export as native")
        for part, rows in zip(names, _split(name, pair, len(names)), strict=True):
            out[part] = LoRAPair(rows, pair.basis)
    return out


def _transformer_names(path: str, family: str) -> tuple[str, ...]:
    blocks, _, rest = path.partition(".")
    index, _, layer = rest.partition(".")
    theirs, layers = TRANSFORMERS.get(family, {}).get(blocks, ("", {}))
    return tuple(f"{theirs}.{index}.{part}" for part in layers.get(layer, ()))


def _split(name: str, pair: LoRAPair, parts: int) -> Sequence[Tensor]:
    """Rows of A by part. q, k and v are as wide as the input; a fourth part is Flux's MLP and takes the rest."""
    if parts == 1:
        return (pair.up,)
    m, n = pair.up.shape[0], pair.basis.shape[0]
    widths = [n] * 3 + [m - 3 * n] * (parts - 3)
    if sum(widths) != m or min(widths) < 1:
        raise SeqLoRAError(f"Layer {name!r} is {m} x {n}, which does not split into {parts} parts", "check its model")
    return pair.up.split(widths)
