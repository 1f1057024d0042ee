"""Which layers of a model are taught. They are named as ComfyUI names them, `diffusion_model.<module>`, whatever runs them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ..errors import SeqLoRAError

# Inside a numbered block only; modulation, norms, embeddings and gates are left alone.
_SKIP = re.compile(r"(ada_?ln|modulation|_mod\b|\bmod\b|norm|embed|emb_|time|gate|final|router|head\b)", re.IGNORECASE)
_ATTENTION = re.compile(r"(attn|attention(?!s)|to_[qkv]\b|to_out|qkv|linear[12]\b|proj_in|proj_out)", re.IGNORECASE)
_MLP = re.compile(r"(\bff\b|ff_context|mlp|feed_?forward|\bfc[12]\b|proj_mlp|\bw[123]\b)", re.IGNORECASE)
TARGETS = {"attention": (_ATTENTION,), "attention and mlp": (_ATTENTION, _MLP)}


def choose_layers(model: nn.Module, targets: str, prefix: str = "diffusion_model.") -> dict[str, nn.Module]:
    """The linear layers of the repeated blocks that `targets` names, in module order.

    Raises SeqLoRAError where nothing matches: such a model cannot be taught.
    """
    if targets not in TARGETS:
        raise SeqLoRAError(f"targets is '{targets}', but must be one of: {', '.join(TARGETS)}")
    chosen = {}
    for name, module in model.named_modules():
        numbered = any(part.isdigit() for part in name.split("."))
        if numbered and is_linear(module) and not _SKIP.search(name) and any(p.search(name) for p in TARGETS[targets]):
            chosen[prefix + name] = module
    if not chosen:
        raise SeqLoRAError("No attention layers were found in this model", "use a diffusion model with transformer blocks")
    return chosen


def is_linear(module: nn.Module) -> bool:
    """A host's own linear classes need not inherit from torch's."""
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def layer_shapes(layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Layer name -> (m, n)."""
    return {name: (int(layer.out_features), int(layer.in_features)) for name, layer in layers.items()}  # type: ignore[arg-type]
