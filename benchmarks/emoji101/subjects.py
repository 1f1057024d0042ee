"""What is taught and asked for: held-out emoji in a seeded order, their pictures, base captions, pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from seqlora.backends.model import HeadlessModel
from seqlora.demo.classifier import load_classifier
from seqlora.demo.pictures import Emoji, all_emoji, concept_pictures, generic_captions, held_out_emoji, trigger_word
from seqlora.diffusion.batches import Examples
from seqlora.diffusion.model import NO_TRIGGERS
from seqlora.lora.types import Triggers

TEACHABLE = 101  # of the 120 held-out emoji; the other 19 are for tuning
PICTURES = 5  # per concept
HELD_OUT = 4  # more pictures of a concept, for its denoising loss
REFERENCES = 8  # pictures behind a concept's place in the judge's embedding


@cache
def _shuffled() -> tuple[Emoji, ...]:
    emoji = list(held_out_emoji())
    random.Random(101).shuffle(emoji)
    return tuple(emoji)


def concepts(count: int, seed: int) -> list[Emoji]:
    """The test concepts of a run, in the order in which they are taught; each seed has an order of its own."""
    order = list(_shuffled()[:TEACHABLE])
    random.Random(seed).shuffle(order)
    return order[:count]


def tuning_concepts(count: int) -> list[Emoji]:
    """Emoji that no test run uses."""
    return list(_shuffled()[TEACHABLE : TEACHABLE + count])


def prompt(emoji: Emoji) -> str:
    return f"a photo of {trigger_word(emoji)} {emoji.class_word}"


def captions(emoji: Emoji, count: int, seed: int) -> list[str]:
    return [f"{prompt(emoji)} on a {background} background" for background in concept_pictures(emoji, count, seed)[1]]


def examples(model: HeadlessModel, emoji: Emoji, count: int, seed: int, triggers: Triggers = NO_TRIGGERS) -> Examples:
    """Latents and conditionings of `count` pictures."""
    pictures, _ = concept_pictures(emoji, count, seed)
    latents = model.encode_pictures(list((pictures.movedim(1, -1) + 1) / 2))  # type: ignore[attr-defined]
    return Examples(latents, model.encode_captions(captions(emoji, count, seed), triggers))  # type: ignore[attr-defined]


def training_examples(model: HeadlessModel, emoji: Emoji, seed: int, triggers: Triggers = NO_TRIGGERS) -> Examples:
    return examples(model, emoji, PICTURES, seed, triggers)


def held_out_examples(model: HeadlessModel, emoji: Emoji, triggers: Triggers = NO_TRIGGERS) -> Examples:
    return examples(model, emoji, HELD_OUT, 9000, triggers)


def references(emoji: Sequence[Emoji]) -> Tensor:
    """(concepts, 128) unit vectors: the mean embedding of clean pictures of each."""
    return torch.nn.functional.normalize(torch.stack([_reference(e) for e in emoji]), dim=1)


@cache
def _reference(emoji: Emoji) -> Tensor:
    return load_classifier().embed(concept_pictures(emoji, REFERENCES, 9001)[0]).mean(0)


def class_of(emoji: Emoji) -> int:
    return all_emoji().index(emoji)


def base_emoji(count: int) -> list[Emoji]:
    """What the base model could draw before anything was taught; without what stands for it while concepts are taught."""
    stand_ins = set(generic_captions())
    known = [e for e in all_emoji() if not e.held_out and base_prompt(e) not in stand_ins]
    return random.Random(0).sample(known, count)


def base_prompt(emoji: Emoji) -> str:
    return f"a photo of {emoji.name}"


def pairs(emoji: Sequence[Emoji], count: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of different concepts to be drawn side by side, as indices."""
    pick = random.Random(seed)
    return [tuple(pick.sample(range(len(emoji)), 2)) for _ in range(count)]  # type: ignore[misc]


def pair_prompt(left: Emoji, right: Emoji) -> str:
    return f"a photo of {trigger_word(left)} {left.class_word} and {trigger_word(right)} {right.class_word}"
