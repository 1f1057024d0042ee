"""What is measured on a composed model, and on each concept alone. Everything is paired: same noise for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seqlora.backends.model import HeadlessModel
from seqlora.demo.classifier import load_classifier
from seqlora.demo.pictures import Emoji
from seqlora.diffusion.batches import Examples
from seqlora.diffusion.model import NO_TRIGGERS
from seqlora.diffusion.sampling import euler
from seqlora.lora.types import LoRAPair, Triggers

from . import subjects

SAMPLES = 4  # pictures of each concept
STEPS = 10  # of the sampler: the base model's emoji are named right as often as with 25
BATCH = 64
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels of the denoising loss
BASE_EMOJI = 192


@torch.no_grad()
def draw(
    model: HeadlessModel,
    composed: Mapping[str, LoRAPair],
    prompts: Sequence[str],
    samples: int = SAMPLES,
    triggers: Triggers = NO_TRIGGERS,
) -> Tensor:
    """Pictures (prompts, samples, 3, H, W) in -1..1. A prompt gets the same noise whatever is asked beside it."""
    conds = [cond for cond in model.encode_captions(prompts, triggers) for _ in range(samples)]  # type: ignore[attr-defined]
    uncond = model.encode_captions([""])  # type: ignore[attr-defined]
    noise = torch.randn(samples, *model.latent_shape, generator=torch.Generator().manual_seed(0)).repeat(len(prompts), 1, 1, 1)
    parts = []
    with model.using(composed):
        for i in range(0, len(conds), BATCH):
            chunk = conds[i : i + BATCH]
            parts.append(euler(model.denoiser, noise[i : i + BATCH], chunk, uncond * len(chunk), steps=STEPS))
    pictures = model.decode(torch.cat(parts)).movedim(-1, 1) * 2 - 1  # type: ignore[attr-defined]
    return pictures.unflatten(0, (len(prompts), samples))


def judge(pictures: Tensor, wanted: Sequence[Emoji], among: Tensor, places: Sequence[int]) -> dict[str, list[float]]:
    """Per concept, over its pictures: cosine to its references; share that is nearest to its own reference `among` (n, 128),
    where `places` says which row is whose; share named right among all 720 emoji."""
    classifier = load_classifier()
    embedded = classifier.embed(pictures.flatten(0, 1))
    similar = (embedded @ among.T).unflatten(0, pictures.shape[:2])
    own = torch.tensor(list(places))
    named = classifier.logits(embedded).argmax(1).unflatten(0, pictures.shape[:2])
    classes = torch.tensor([subjects.class_of(e) for e in wanted])
    return {
        "cosine": similar[torch.arange(len(own)), :, own].mean(1).tolist(),
        "nearest": (similar.argmax(2) == own[:, None]).float().mean(1).tolist(),
        "named": (named == classes[:, None]).float().mean(1).tolist(),
    }


@torch.no_grad()
def denoising(model: HeadlessModel, composed: Mapping[str, LoRAPair], examples: Examples) -> list[float]:
    """Mean squared velocity error on held-out pictures with fixed noise, at each of TIMES."""
    denoiser, count = model.denoiser, len(examples.latents)
    x0 = torch.stack(list(examples.latents))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor(TIMES).repeat_interleave(count)
    x0, noise, conds = x0.repeat(len(TIMES), 1, 1, 1), noise.repeat(len(TIMES), 1, 1, 1), list(examples.conds) * len(TIMES)
    with model.using(composed):
        predicted = denoiser(denoiser.add_noise(x0, noise, sigma), sigma, conds)
    error = denoiser.loss_weight(sigma) * (predicted - x0).square().flatten(1).mean(1)
    return error.unflatten(0, (len(TIMES), count)).mean(1).tolist()


def base_accuracy(model: HeadlessModel, composed: Mapping[str, LoRAPair]) -> float:
    """Share of base emoji that are still named right among all 720; always the same ones, so that runs can be compared."""
    emoji = subjects.base_emoji(BASE_EMOJI)
    pictures = draw(model, composed, [subjects.base_prompt(e) for e in emoji], 1)
    named = load_classifier()(pictures.flatten(0, 1)).argmax(1)
    return float((named == torch.tensor([subjects.class_of(e) for e in emoji])).float().mean())


def judge_pairs(pictures: Tensor, pairs: Sequence[tuple[int, int]], among: Tensor) -> dict[str, float]:
    """Pictures (pairs, samples, 3, H, W) of two concepts side by side, each half judged by itself `among` all concepts taught:
    shares in which both are in their place, at least one is, and both are there with sides swapped."""
    side = pictures.shape[-1]
    half = slice(side // 4 - 2, side - side // 4 + 2)  # an emoji of a pair is a little over half as large
    width = side // 2 + 4
    nearest = []
    for crop in (pictures[..., half, :width], pictures[..., half, -width:]):
        enlarged = torch.nn.functional.interpolate(crop.flatten(0, 1), size=side, mode="bilinear", align_corners=False)
        nearest.append((load_classifier().embed(enlarged) @ among.T).argmax(1).unflatten(0, pictures.shape[:2]))
    left, right = (torch.tensor([pair[i] for pair in pairs])[:, None] for i in (0, 1))
    placed = (nearest[0] == left).float(), (nearest[1] == right).float()
    swapped = ((nearest[0] == right) & (nearest[1] == left)).float()
    return {
        "both": float((placed[0] * placed[1]).mean()),
        "at least one": float(torch.maximum(*placed).mean()),
        "swapped": float(swapped.mean()),
    }
