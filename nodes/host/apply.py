"""A composed adapter on the user's MODEL: in its weights where they can hold it exactly, beside them where they cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.utils
import comfy.weight_adapter
import torch
from torch import Tensor, nn

from ...seqlora.errors import SeqLoRAError
from ...seqlora.lora.types import LoRAPair
from .forward import run_beside
from .regions import Regions

PLAIN = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Target:
    """Where a layer of a library is in this model."""

    layer: str
    key: Any  # as the host's patches name it: the weight, or (weight, (dimension, first row, rows))
    path: str  # of its module
    module: nn.Module
    pair: LoRAPair

    @property
    def first_row(self) -> int:
        return 0 if isinstance(self.key, str) else self.key[1][1]


def apply_adapter(model: Any, composed: Mapping[str, LoRAPair], strength: float, regions: Regions | None = None) -> Any:
    """A clone of MODEL with the adapter, added once.

    Plain weights are patched as the host does it with any LoRA, and sampling costs what it did. A quantised weight would be
    rounded again, in which a weak adapter drowns; a model that has one runs the adapter beside its layers. So does every model
    with regions, for which `regions` says which concept each column of a layer's pair is of.
    Raises SeqLoRAError naming the first layer that the model lacks or whose shape differs, and for regions on an unknown model.
    """
    targets = list(_targets(model.model, composed))
    if regions is not None:
        owners: dict[str, list[int]] = {}
        for target in targets:
            owners.setdefault(target.path, []).extend(regions.owners[target.layer])
        return run_beside(model, _by_module(targets, strength), Regions(regions.plan, owners))
    if any(_is_quantised(target.module) for target in targets):
        return run_beside(model, _by_module(targets, strength))
    patches = {
        target.key: comfy.weight_adapter.LoRAAdapter(set(), (A, B.mT.contiguous(), None, None, None, None))
        for target in targets
        for A, B in [target.pair]
    }
    patched = model.clone()
    missing = patches.keys() - set(patched.add_patches(patches, strength))
    if missing:
        raise SeqLoRAError(f"ComfyUI did not take the adapter of {next(iter(missing))}", "update ComfyUI and this node pack")
    return patched


def _targets(model: nn.Module, composed: Mapping[str, LoRAPair]) -> Iterator[Target]:
    keys = comfy.lora.model_lora_keys_unet(model, {})
    for layer, pair in composed.items():
        key = keys.get(layer)
        if key is None:
            raise SeqLoRAError(f"This model has no layer {layer}", "use the model that the library was taught on")
        path = (key if isinstance(key, str) else key[0]).removesuffix(".weight")
        module = comfy.utils.get_attr(model, path)
        # Asked of the module: quantised weights are packed into other shapes.
        shape = (module.out_features if isinstance(key, str) else key[1][2], module.in_features)
        wanted = (pair.up.shape[0], pair.basis.shape[0])
        if shape != wanted:
            raise SeqLoRAError(
                f"Layer {layer} is {shape[0]} x {shape[1]} in this model and {wanted[0]} x {wanted[1]} in the library",
                "use the model that the library was taught on",
            )
        yield Target(layer, key, path, module, pair)


def _is_quantised(module: nn.Module) -> bool:
    """Whether a changed weight would have to be rounded to a few bits again; other packs bring tensor classes of their own."""
    weight = module.weight
    return weight.dtype not in PLAIN or type(weight) not in (Tensor, nn.Parameter) or type(weight.data) is not Tensor


def _by_module(targets: list[Target], strength: float) -> dict[str, LoRAPair]:
    """One pair a module. Where a library has rows of it under several names, the pairs stand side by side."""
    parts: dict[str, list[LoRAPair]] = {}
    for target in targets:
        rows: int = target.module.out_features  # type: ignore[assignment]
        up = target.pair.up * strength
        if up.shape[0] != rows:
            up, part = up.new_zeros(rows, up.shape[1]), up
            up[target.first_row : target.first_row + part.shape[0]] = part
        parts.setdefault(target.path, []).append(LoRAPair(up, target.pair.basis))
    return {
        path: LoRAPair(torch.cat([pair.up for pair in found], 1), torch.cat([pair.basis for pair in found], 1))
        for path, found in parts.items()
    }
