"""LoRA files made elsewhere: what they change of which layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import SeqLoRAError
from .layouts import native_to_diffusers
from .types import LoRAPair

# As trainers write them: sd-scripts, PEFT, diffusers before PEFT.
_UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight", "_lora.up.weight")
_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight", "_lora.down.weight")
_ALPHA = (".alpha",)
_KINDS = [(suffix, kind) for kind, suffixes in (("up", _UP), ("down", _DOWN), ("alpha", _ALPHA)) for suffix in suffixes]
_PREFIXES = re.compile(
    r"^(base_model\.model\.)?(diffusion_model\.|unet\.|transformer\.|lora_unet_|lora_transformer_|lycoris_)?"
)
_OTHER_KINDS = {"hada_w1_a": "LoHa", "lokr_w1": "LoKr", "lokr_w1_a": "LoKr", "dora_scale": "DoRA", "oft_blocks": "OFT"}


class ReadLoRA(NamedTuple):
    change: dict[str, LoRAPair]  # layer -> the pair whose A B' the file adds to it, of any rank
    left_out: list[str]  # what else the file changes, by the names it gives it


def read_lora(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], layout: Mapping[str, Any]) -> ReadLoRA:
    """What a LoRA file with these tensors does to layers of these shapes (m, n), under any of the names in use for them:
    native, kohya's, diffusers' or PEFT's. Several parts of one fused layer become one pair, their ranks added up.

    Raises SeqLoRAError for a file that is no plain LoRA, is for another model, or is incomplete.
    """
    for key in tensors:
        other = _OTHER_KINDS.get(key.rpartition(".")[2])
        if other:
            raise SeqLoRAError(
                f"The file is a {other}, not a plain LoRA (it has {key!r})", "adopt it in ComfyUI, which loads it"
            )
    known = _places(shapes, layout)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        suffix, kind = next(((s, k) for s, k in _KINDS if key.endswith(s)), ("", "else"))
        parts.setdefault(key.removesuffix(suffix), {})[kind] = tensor
    found: dict[str, list[LoRAPair]] = {}
    left_out = []
    for stem, part in parts.items():
        place = known.get(_canonical(stem))
        if place is None:
            left_out.append(stem)
            continue
        layer, rows = place
        found.setdefault(layer, []).append(_pair(stem, part, rows, shapes[layer]))
    if not found:
        raise SeqLoRAError(
            f"The file changes none of the layers that are taught to this model (it has {next(iter(tensors), 'nothing')!r})",
            "choose a LoRA that was made for this base model",
        )
    return ReadLoRA({layer: _joined(found[layer]) for layer in shapes if layer in found}, sorted(left_out))


def _canonical(path: str) -> str:
    return _PREFIXES.sub("", path).replace(".processor.", ".").replace(".", "_")


def _places(shapes: Mapping[str, tuple[int, int]], layout: Mapping[str, Any]) -> dict[str, tuple[str, slice]]:
    """The names that a layer, or some rows of it, may have in a file -> the layer and its rows."""
    places = {_canonical(name): (name, slice(0, m)) for name, (m, _) in shapes.items()}
    tags = torch.arange(len(shapes))[:, None]
    tagged = {  # so that what becomes of a layer's rows tells where they were
        name: LoRAPair(torch.cat([tags[i].expand(m, 1), torch.arange(m)[:, None]], 1), torch.empty(n, 2))
        for i, (name, (m, n)) in enumerate(shapes.items())
    }
    with suppress(SeqLoRAError):  # a model without names in diffusers
        for path, (rows, _) in native_to_diffusers(tagged, layout).items():
            places[_canonical(path)] = (list(shapes)[int(rows[0, 0])], slice(int(rows[0, 1]), int(rows[-1, 1]) + 1))
    # The names from before PEFT have no number behind an attention's output.
    return places | {alias.removesuffix("_0"): place for alias, place in places.items() if alias.endswith("_to_out_0")}


def _pair(stem: str, part: Mapping[str, Tensor], rows: slice, shape: tuple[int, int]) -> LoRAPair:
    """One part's pair for the whole layer: zero in the rows that are not its own."""
    missing = [kind for kind in ("up", "down") if kind not in part]
    if missing:
        raise SeqLoRAError(f"'{stem}' lacks its {missing[0]} matrix", "the file is incomplete, download it again")
    up, down = (part[kind].float().flatten(1) for kind in ("up", "down"))  # a 1 x 1 convolution is a matrix as well
    height, rank = rows.stop - rows.start, down.shape[0]
    if up.shape != (height, rank) or down.shape != (rank, shape[1]):
        raise SeqLoRAError(
            f"'{stem}' is {tuple(up.shape)} times {tuple(down.shape)}, but the layer is {height} x {shape[1]}",
            "choose a LoRA that was made for this base model",
        )
    if not (up.isfinite().all() and down.isfinite().all()):
        raise SeqLoRAError(f"'{stem}' holds values that are not numbers", "choose another version of the file")
    scale = float(part["alpha"]) / rank if "alpha" in part else 1.0
    whole = torch.zeros(shape[0], rank)
    whole[rows] = up * scale
    return LoRAPair(whole, down.mT.contiguous())


def _joined(pairs: list[LoRAPair]) -> LoRAPair:
    return LoRAPair(torch.cat([pair.up for pair in pairs], 1), torch.cat([pair.basis for pair in pairs], 1))
