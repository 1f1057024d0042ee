"""Teaching a run's concepts one after another, each kept on disk as soon as it is taught."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from seqlora.backends.model import HeadlessModel
from seqlora.demo.pictures import Emoji, trigger_word
from seqlora.diffusion.batches import Batches, Examples
from seqlora.diffusion.model import NO_TRIGGERS
from seqlora.io.safetensors_file import read_tensors, write_tensors
from seqlora.library.store import request_hash
from seqlora.lora.compose import compose
from seqlora.lora.formats import from_native, to_native
from seqlora.lora.types import Concept, LoRAPair, Triggers, Vectors
from seqlora.lora.vectors import KEY, pack, unpack
from seqlora.method.moments import Moments
from seqlora.method.trained import TrainedConcept
from seqlora.settings import Settings, legacy_names
from seqlora.training.measure import measure_concept, measure_prior
from seqlora.training.progress import Progress, TrainingSteps, run_to_end
from seqlora.training.trainer import RECORDED, train_concept
from seqlora.training.trigger import LearnedTrigger

from . import subjects
from .methods import REVISION

TARGETS = "attention and mlp"
MAX_CONCEPT = 64 << 20  # bytes of a concept's file


@dataclass
class Lessons:
    """What a run has taught so far."""

    emoji: list[Emoji]
    concepts: list[dict[str, LoRAPair]] = field(default_factory=list)
    moments: list[Moments] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)  # of each one's trigger
    about: list[dict] = field(default_factory=list)  # losses, seconds, full layers of each
    together: bool = False  # one adapter holds all of them

    @property
    def taught(self) -> list[Emoji]:
        return self.emoji if self.together else self.emoji[: len(self.concepts)]

    @property
    def triggers(self) -> Triggers:
        """What the triggers so far mean, where concepts have learned that."""
        pairs = zip(self.emoji, self.vectors, strict=False)
        return {trigger_word(emoji): vectors for emoji, vectors in pairs if vectors}

    def composed(self) -> dict[str, LoRAPair]:
        """All concepts so far, summed."""
        return compose([(concept, 1.0) for concept in self.concepts])


@dataclass(frozen=True)
class Run:
    """One method, one order of concepts. `settings` decides everything; the folder is named after it."""

    model: HeadlessModel
    prior: Moments
    emoji: Sequence[Emoji]
    settings: Settings
    ranks: Mapping[str, int]  # of the layers that are taught
    planned: int  # scales the penalty
    seed: int
    folder: Path
    together: bool = False  # one adapter for all concepts at once

    def path(self, number: int) -> Path:
        return self.folder / f"{number + 1:04d}.safetensors"

    def teach(self) -> Iterator[Lessons]:
        """Yields after each concept. What is on disk is read, not taught again."""
        if self.together:
            yield self._teach_together()
            return
        layers = {name: layer for name, layer in self.model.layers(TARGETS).items() if name in self.ranks}
        lessons = Lessons(list(self.emoji))
        total: Moments | None = None
        for number, emoji in enumerate(self.emoji):
            settings = self.settings.with_(seed=1000 * self.seed + number)
            path = self.path(number)
            if path.exists():
                pairs, vectors, about = read_concept(path)
                own = {trigger_word(emoji): vectors} if vectors else NO_TRIGGERS
                examples = subjects.training_examples(self.model, emoji, self.seed, own)
                batches = Batches(
                    examples, self.model.denoiser, settings.batch_size, torch.Generator().manual_seed(settings.seed)
                )
                moments = run_to_end(measure_concept(self.model.denoiser, layers, batches))
            else:
                trained, about = timed(self._train(layers, emoji, settings, lessons.concepts, total))
                pairs, vectors, moments = trained.pairs, trained.vectors, trained.moments
                write_concept(path, pairs, vectors, about)
            lessons.concepts.append(pairs)
            lessons.vectors.append(vectors)
            lessons.moments.append(moments)
            lessons.about.append(about)
            total = moments if total is None else total + moments
            yield lessons

    def _train(
        self,
        layers: Mapping[str, nn.Module],
        emoji: Emoji,
        settings: Settings,
        earlier: Sequence[Concept],
        total: Moments | None,
    ) -> TrainingSteps[TrainedConcept]:
        model, planned = self.model, self.planned
        examples = subjects.training_examples(model, emoji, self.seed)
        trigger = LearnedTrigger.of(
            settings,
            model,  # type: ignore[arg-type]
            trigger_word(emoji),
            subjects.captions(emoji, subjects.PICTURES, self.seed),
        )
        return train_concept(
            model.denoiser, layers, examples, settings, self.ranks, earlier, self.prior, total, planned, trigger
        )

    def _teach_together(self) -> Lessons:
        """One adapter of all concepts' ranks, pictures and passes."""
        layers = self.model.layers(TARGETS)
        count = len(self.emoji)
        lessons, path = Lessons(list(self.emoji), together=True), self.path(0)
        if path.exists():
            pairs, _, about = read_concept(path)
        else:
            parts = [subjects.training_examples(self.model, emoji, self.seed) for emoji in self.emoji]
            examples = Examples([x for part in parts for x in part.latents], [c for part in parts for c in part.conds])
            settings = self.settings.with_(seed=1000 * self.seed, steps=self.settings.steps * count)
            trained, about = timed(train_concept(self.model.denoiser, layers, examples, settings, self.ranks))
            pairs = trained.pairs
            write_concept(path, pairs, {}, about)
        lessons.concepts.append(pairs)
        lessons.about.append(about)
        return lessons


def timed(run: TrainingSteps[TrainedConcept]) -> tuple[TrainedConcept, dict]:
    """Runs a training to its end; also what it says of itself, with the median seconds of its steps."""
    seconds: list[float] = []
    last = time.process_time()  # not the clock: runs share the machine's cores

    def tell(progress: Progress) -> None:
        nonlocal last
        now = time.process_time()
        if progress.phase == "training":
            seconds.append(now - last)
        last = now

    trained = run_to_end(run, tell)
    return trained, {
        **{name: getattr(trained, name) for name in RECORDED},
        "full_layers": len(trained.full_layers),
        "step_seconds": sorted(seconds)[len(seconds) // 2],
    }


def write_concept(path: Path, pairs: dict[str, LoRAPair], vectors: Vectors, about: dict) -> None:
    write_tensors(path, to_native(pairs), {"about": json.dumps(about)} | ({KEY: pack(vectors)} if vectors else {}))


def read_concept(path: Path) -> tuple[dict[str, LoRAPair], Vectors, dict]:
    tensors, metadata = read_tensors(path, MAX_CONCEPT)
    return from_native(tensors), unpack(metadata[KEY]) if KEY in metadata else {}, json.loads(metadata["about"])


def prior_of(model: HeadlessModel) -> Moments:
    uncond, *generic = model.encode_captions(["", *model.generic_captions])  # type: ignore[attr-defined]
    return run_to_end(measure_prior(model.denoiser, model.layers(TARGETS), model.latent_shape, generic, uncond))


def run_key(settings: Settings, ranks: Mapping[str, int], planned: int) -> str:
    """Of all that decides what is taught, the emoji and the seed apart."""
    return request_hash(legacy_names(settings.with_(seed=0)), dict(ranks), planned, REVISION)[:10]
