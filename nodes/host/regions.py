"""Regions on the host's models: which lengths are pictures, which tokens see which, and texts joined into one conditioning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import WanModel
from torch import Tensor, nn

from ...seqlora.errors import SeqLoRAError
from ...seqlora.prompt.regions import RegionPlan, Tokens

JOINT = (Flux, Chroma, MMDiT, QwenImageTransformer2DModel)  # text and picture in one sequence, the text first
PADDED = 77  # tokens: CLIP's own length, of which the padding says something too
APART = (UNetModel, WanModel)  # the picture looks at the text


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of a prompt, and for each layer of a library which concept each column of its pair is of."""

    plan: RegionPlan
    owners: Mapping[str, Sequence[int]]


def check_model(network: nn.Module) -> None:
    """Raises SeqLoRAError for a model of which it is not known what its tokens are."""
    if not isinstance(network, JOINT + APART):
        raise SeqLoRAError(
            f"Regions do not know which tokens of this model ({type(network).__name__}) are the picture",
            "leave regions out; they work on UNets (SD 1.x, 2.x, SDXL), SD3, Flux, Chroma, Qwen-Image and Wan",
        )


def tokens_of(plan: RegionPlan, network: nn.Module, latents: Sequence[int], text: int) -> Tokens:
    """What the tokens are for latents of this shape and a text of so many tokens."""
    return Tokens(plan, text, _pictures(network, latents), isinstance(network, JOINT))


def _pictures(network: Any, latents: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """Length -> (frames, height, width): of every level of a UNet; of the patches of a transformer."""
    frames, (height, width) = math.prod(latents[2:-2]), latents[-2:]
    if isinstance(network, UNetModel):
        sizes = [(math.ceil(height / 2**level), math.ceil(width / 2**level)) for level in range(len(network.channel_mult))]
    else:
        *_, down, across = (network.patch_size,) * 2 if isinstance(network.patch_size, int) else network.patch_size
        sizes = [(math.ceil(height / down), math.ceil(width / across))]
    return {frames * height * width: (frames, height, width) for height, width in sizes}


class Attention:
    """In place of the host's attention: each token sees what its group sees, in one call a group instead of a mask over all.

    `before` is the attention that some other node has put in this place.
    """

    def __init__(self, tokens: Tokens, device: torch.device, before: Callable[..., Tensor] | None):
        self.tokens, self.device, self.before = tokens, device, before
        self.known: dict[tuple[int, int], Any] = {}

    def __call__(
        self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        if self.before is not None:
            before, inner = self.before, attend

            def attend(*args: Any, **kwargs: Any) -> Tensor:
                return before(inner, *args, **kwargs)

        dim = 2 if kwargs.get("skip_reshape") else 1
        found = self._groups(q.shape[dim], k.shape[dim])
        if found is None:
            return attend(q, k, v, heads, *args, **kwargs)
        groups, order = found
        mask, args = (args[0], args[1:]) if args else (kwargs.pop("mask", None), args)
        parts = []
        for rows, columns in groups:
            chosen = [q.index_select(dim, rows), k.index_select(dim, columns), v.index_select(dim, columns)]
            parts.append(attend(*chosen, heads, _part(mask, q.shape[dim], rows, columns), *args, **kwargs))
        along = 2 if kwargs.get("skip_output_reshape") else 1
        return torch.cat(parts, along).index_select(along, order)

    def _groups(self, queries: int, keys: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor] | None:
        """(rows, columns) of each group, and the order that brings all rows back to where they were."""
        if (queries, keys) not in self.known:
            groups, found = self.tokens.groups(queries, keys), None
            if groups is not None:
                order = torch.argsort(torch.cat([rows for rows, _ in groups])).to(self.device)
                found = [(rows.to(self.device), columns.to(self.device)) for rows, columns in groups], order
            self.known[queries, keys] = found
        return self.known[queries, keys]


def _part(mask: Tensor | None, queries: int, rows: Tensor, columns: Tensor) -> Tensor | None:
    """The part of the model's own mask that concerns a group."""
    if mask is None:
        return None
    mask = mask.index_select(-1, columns)
    return mask.index_select(-2, rows) if mask.ndim > 1 and mask.shape[-2] == queries else mask


def encode_words(clip: Any, text: str) -> Any:
    """A text as a conditioning, without the padding that a long text encoder adds: a few words need no 256 tokens."""
    tokens = clip.tokenize(text)
    words, options = clip.encode_from_tokens_scheduled(tokens)[0]
    for chunks in tokens.values() if isinstance(tokens, dict) else ():
        ids = [token[0] for chunk in chunks for token in chunk]
        if len(ids) == words.shape[1] > PADDED and isinstance(ids[-1], int):
            while isinstance(ids[-2], int) and ids[-2] == ids[-1]:  # the last one stays: it may be the end of the text
                ids.pop()
            words = words[:, : len(ids)]
    return [[words, options]]


def join_texts(prompt: Any, texts: Sequence[Any]) -> tuple[Any, list[int]]:
    """A conditioning with the texts of regions behind the prompt's, and how many tokens each has."""
    if len(prompt) != 1:
        raise SeqLoRAError("Regions need a prompt that stays the same from step to step", "take hooks off the text encoder")
    (words, options), others = prompt[0], [text[0][0] for text in texts]
    return [[torch.cat([words, *others], 1), dict(options)]], [part.shape[1] for part in (words, *others)]


def lengthened(conditioning: Any, length: int) -> Any:
    """A conditioning as long as another, by its own tokens over again: the host then runs both in one batch."""
    return [
        [words.repeat(1, math.ceil(length / words.shape[1]), 1)[:, :length], dict(options)] for words, options in conditioning
    ]
