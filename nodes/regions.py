"""The node that says where in the picture concepts belong."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..seqlora.errors import SeqLoRAError
from ..seqlora.library.store import Library
from ..seqlora.lora.compose import compose, owners
from ..seqlora.prompt.grammar import Prompt, read_prompt
from ..seqlora.prompt.regions import Region, RegionPlan, box_mask
from . import host

RegionsType = io.Custom("SEQLORA_REGIONS")


class ConceptRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        sides = {"min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id="SeqLoRA_ConceptRegion",
            display_name="Concept Region",
            category="SeqLoRA/apply",
            description="Gives concepts a place in the picture: a box or a mask. Connect it to Concept Prompt, or to the next "
            "Concept Region for further places. All are drawn in one pass.",
            search_aliases=["regional prompt", "area", "mask", "box", "two people", "attention couple", "multi character"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What is in this place, as a prompt: 'a photo of @rex'. The concepts it names are switched on here "
                    "and nowhere else.",
                ),
                io.Float.Input("x", default=0.0, **sides, tooltip="The box's left edge, as a share of the picture's width."),
                io.Float.Input("y", default=0.0, **sides, tooltip="The box's upper edge, as a share of the picture's height."),
                io.Float.Input("width", default=0.5, **sides, tooltip="The box's width, as a share of the picture's."),
                io.Float.Input("height", default=1.0, **sides, tooltip="The box's height, as a share of the picture's."),
                io.Mask.Input("mask", optional=True, tooltip="The place, instead of the box. White is inside."),
                RegionsType.Input("regions", optional=True, tooltip="Further places, from another Concept Region."),
            ],
            outputs=[
                RegionsType.Output("regions", tooltip="All places so far, for Concept Prompt or the next Concept Region.")
            ],
        )

    @classmethod
    def execute(
        cls,
        text: str,
        x: float,
        y: float,
        width: float,
        height: float,
        mask: Tensor | None = None,
        regions: tuple[Region, ...] = (),
    ) -> io.NodeOutput:
        if not text.strip():
            raise SeqLoRAError("A Concept Region has no text", "write what is there, for example 'a photo of @rex'")
        place = box_mask(x, y, width, height) if mask is None else _place(mask)
        return io.NodeOutput((*regions, Region(text, place)))


def _place(mask: Tensor) -> Tensor:
    """(h, w) in 0..1 of a MASK, (1, h, w) or (h, w); all values must be finite and one above 0."""
    found = mask.reshape(-1, *mask.shape[-2:])
    if len(found) != 1:
        raise SeqLoRAError(f"The mask of a Concept Region holds {len(found)} masks", "give each region one")
    if not bool(torch.isfinite(found).all()) or not bool((found > 0).any()):
        raise SeqLoRAError("The mask of a Concept Region is empty", "paint the place white, or leave the mask away for the box")
    return found[0].float().clamp(0, 1)


def encode_with_regions(
    model: Any, clip: Any, opened: Library, prompt: Prompt, negative: str, regions: tuple[Region, ...]
) -> tuple[Any, Any, Any, dict[str, float]]:
    """(model, positive, negative, strengths) of a prompt with regions; a concept that a region names is only there.

    Raises SeqLoRAError for a model whose tokens are not known, or a concept with two strengths.
    """
    host.check_model(model.model.diffusion_model)
    said = [read_prompt(region.text, opened.concepts, weights=True) for region in regions]
    strengths = _strengths(prompt, said)
    active = {name: strength for name, strength in strengths.items() if strength}
    clip = host.with_own_words(clip, opened.triggers(active))
    members = [[i for i, part in enumerate(said) if name in part.strengths] for name in active]
    positive, lengths = host.join_texts(
        clip.encode_from_tokens_scheduled(clip.tokenize(prompt.text)), [host.encode_words(clip, part.text) for part in said]
    )
    against = host.lengthened(clip.encode_from_tokens_scheduled(clip.tokenize(negative)), sum(lengths))
    concepts = [opened.load(name) for name in active]
    plan = RegionPlan([region.mask for region in regions], lengths, members)
    composed = compose(list(zip(concepts, active.values(), strict=True)))
    return host.apply_adapter(model, composed, 1.0, host.Regions(plan, owners(concepts))), positive, against, active


def _strengths(prompt: Prompt, said: list[Prompt]) -> dict[str, float]:
    """Of all concepts that are named; a region's word goes before the prompt's."""
    named: dict[str, float] = {}
    for part in said:
        for name, strength in part.strengths.items():
            if named.setdefault(name, strength) != strength:
                raise SeqLoRAError(f"Two regions give @{name} two strengths", "give it the same in both")
    return prompt.strengths | named


NODES = [ConceptRegion]
