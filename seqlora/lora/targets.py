"""Which layers of a model are taught. They are named as ComfyUI names them, `diffusion_model.<module>`, whatever runs them.

A model's structure says which layers can be taught: the linear ones of its repeated blocks. Names only tell the groups apart.
Whether a layer really takes part is found by running the model, see training/trace.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ..errors import SeqLoRAError
from ..settings import LIBRARY_OPTIONS

# Modulation, norms and embeddings are left alone, and so is what chooses among experts or weighs whole heads.
_SKIP = re.compile(
    r"(ada_?ln|modulation|_mod\b|(?-i:\bmod[A-Z]*\b)|norm|embed|emb_|temb|time|\bt_block\b|distilled_guidance|"
    r"caption_projection|param_generator|final|router|head\b)",
    re.IGNORECASE,
)
_ATTENTION = re.compile(r"(attn|attention(?!s)|to_[qkv]\b|\b[qkvo]\b|to_out|qkv|linear[12]\b|proj_in|proj_out)", re.IGNORECASE)
# A UNet's are beside its blocks, not in them.
_BESIDE_BLOCKS = re.compile(r"\.\d+\.(?:\w+\.)*proj_(?:in|out)$")
TARGETS = LIBRARY_OPTIONS["targets"].choices


def choose_layers(model: nn.Module, targets: str, prefix: str = "diffusion_model.") -> dict[str, nn.Module]:
    """The linear layers of the repeated blocks, for "attention" those of the attention only, in module order.

    Raises SeqLoRAError where there are none: such a model cannot be taught.
    """
    LIBRARY_OPTIONS["targets"].check(targets)
    inside = {id(part) for block in repeated_blocks(model) for part in block.modules()}
    chosen = {}
    for name, module in linear_layers(model, "").items():
        if (id(module) in inside or _BESIDE_BLOCKS.search(name)) and not _SKIP.search(name) and not _is_gate(name, module):
            if targets != "attention" or _ATTENTION.search(name):
                chosen[prefix + name] = module
    if not chosen:
        raise SeqLoRAError("No attention layers were found in this model", "use a diffusion model with transformer blocks")
    return chosen


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost members of module lists that are run as a whole; a UNet's are inside its levels."""
    found: list[nn.Module] = []

    def search(module: nn.Module, in_list: bool) -> None:
        if in_list and not isinstance(module, (nn.Sequential, nn.ModuleList)) and next(module.children(), None) is not None:
            found.append(module)
            return
        for child in module.children():
            search(child, isinstance(module, nn.ModuleList))

    search(model, False)
    return found


def linear_layers(model: nn.Module, prefix: str = "diffusion_model.") -> dict[str, nn.Module]:
    """All linear layers by name, taught or not."""
    return {prefix + name: module for name, module in model.named_modules() if is_linear(module)}


def is_linear(module: nn.Module) -> bool:
    """A host's own linear classes need not inherit from torch's."""
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def _is_gate(name: str, module: nn.Module) -> bool:
    """One number for a head or an expert; the gate of a SwiGLU is as wide as what it gates."""
    (narrow, wide), *_ = layer_shapes({name: module}).values()
    return "gate" in name.rpartition(".")[2].lower() and narrow < wide


def layer_shapes(layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Layer name -> (m, n)."""
    return {name: (int(layer.out_features), int(layer.in_features)) for name, layer in layers.items()}  # type: ignore[arg-type]
