"""A LoRA made elsewhere becomes a concept: what the model draws and predicts with it on is the lesson.

Its pictures are not needed (distillation; Hinton et al. 2015). With the LoRA on, the model draws a few pictures with the
trigger, and is then asked what it sees in noised versions of them. The concept is taught to answer the same, from the start
that `method/reduce.py` finds, as any concept is: orthogonal to the others, beside them, and kept from disturbing them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..diffusion.batches import Answers, denoising_loss
from ..diffusion.denoiser import Denoiser
from ..diffusion.model import DrawingModel, SamplingModel
from ..diffusion.sampling import euler_trajectory
from ..errors import SeqLoRAError, remedied
from ..families import usual
from ..io.safetensors_file import read_bytes, read_tensors
from ..lora.attach import Stack, attached
from ..lora.read import read_lora
from ..lora.targets import layer_shapes
from ..lora.types import Concept
from ..settings import Settings
from .measure import DRAWN_POSITIONS
from .progress import Phase, Progress, TrainingSteps

STEPS, RATE = 0.4, 0.05  # of what suits the model: it starts near, and large steps would lead away again
DRAWING_STEPS = 12
ANSWERS = 128  # noised pictures that the teacher is asked about
HELD_OUT = 16  # and as many more, by which it is told how much was kept
LARGEST = 8 << 30  # bytes of a LoRA file
T = TypeVar("T")
LEAST = 1e-8  # a loss; a LoRA that moves the model's predictions less does nothing


@dataclass(frozen=True)
class Adoption:
    """What is taken over."""

    called: str  # the file's name
    digest: str  # of the file: what pictures are to other requests
    change: Callable[[], Concept]  # what it does to layers, or near to it: the start
    teacher: Callable[[], AbstractContextManager[DrawingModel]]  # the model while the LoRA is on
    fast: bool = False  # the start is all
    note: str = ""  # a sentence on what is left out

    def settings(self, settings: Settings, family: str) -> Settings:
        """With what is left to the model as suits what starts near."""
        suits = usual(family)
        return settings.with_(
            steps=settings.steps or math.ceil(STEPS * suits.steps),
            learning_rate=settings.learning_rate or RATE * suits.learning_rate,
        )


def adopted_file(model: SamplingModel, path: Path, fast: bool = False) -> Adoption:
    """A LoRA file for a model that draws by itself. Raises SeqLoRAError for one that is damaged or for another model."""
    with remedied("give a whole LoRA, as a .safetensors file"):
        tensors, _ = read_tensors(path, LARGEST)
        digest = hashlib.sha256(read_bytes(path, LARGEST)).hexdigest()
    read = read_lora(tensors, layer_shapes(model.linear_layers()), model.layout)
    note = ""
    if read.left_out:
        note = (
            f"{len(read.left_out)} parts of {path.name} are no linear layers of this model and were left out (first "
            f"{read.left_out[0]}); ComfyUI would load them."
        )

    @contextmanager
    def teacher() -> Iterator[DrawingModel]:
        with model.using(read.change):
            yield model

    return Adoption(path.name, digest, lambda: read.change, teacher, fast, note)


class Lesson(NamedTuple):
    """What the teacher gives: pictures with captions, and its answers to noised versions of them."""

    pictures: list[Tensor]
    captions: list[str]
    answers: Answers
    held_out: Answers  # of the last two pictures, which are not taught

    def for_pupil(self, captions: Sequence[str], conds: Sequence[Any]) -> tuple[list[str], Answers, Answers]:
        """A caption for each answer that is taught, and both kinds of answers with the pupil's own conditionings."""
        return (
            _in_turn(captions[:-2], ANSWERS),
            replace(self.answers, conds=_in_turn(conds[:-2], ANSWERS)),
            replace(self.held_out, conds=_in_turn(conds[-2:], HELD_OUT)),
        )


def ask_teacher(teacher: DrawingModel, subject: str) -> TrainingSteps[Lesson]:
    """Draws the subject in each of the model's contexts, in the last one twice, and asks about them.

    Raises SeqLoRAError where the model with the LoRA on puts out what is no number.
    """
    captions = [context.format(subject) for context in (*teacher.contexts, teacher.contexts[-1])]
    *conds, empty = teacher.encode_captions([*captions, ""])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(captions), *teacher.latent_shape, generator=generator)
    size = max(1, DRAWN_POSITIONS // math.prod(noise.shape[2:]))
    drawing, total = -(-len(captions) // size) * DRAWING_STEPS, 0
    latents: list[Tensor] = []
    for first in range(0, len(captions), size):
        some = slice(first, first + size)
        uncond = [empty] * len(conds[some])
        guidance = teacher.default_guidance
        for state, _ in euler_trajectory(teacher.denoiser, noise[some], conds[some], uncond, guidance, DRAWING_STEPS):
            drawn, total = state, min(total + 1, drawing)
            yield Progress(Phase.MEASURING, total, drawing)
        latents += drawn.float().cpu()
    if not torch.stack(latents).isfinite().all():
        raise SeqLoRAError("With the LoRA on, the model draws what is no number", "check that the file is made for this model")
    answers = yield from _answers(teacher.denoiser, latents[:-2], conds[:-2], ANSWERS, size, generator)
    held_out = yield from _answers(teacher.denoiser, latents[-2:], conds[-2:], HELD_OUT, size, generator)
    pictures = [teacher.decode(latent[None])[0] for latent in latents]
    return Lesson(pictures, captions, answers, held_out)


def _answers(
    denoiser: Denoiser, latents: Sequence[Tensor], conds: Sequence[Any], count: int, size: int, generator: torch.Generator
) -> TrainingSteps[Answers]:
    x0, conds = _in_turn(latents, count), _in_turn(conds, count)
    noise = torch.randn(count, *latents[0].shape, generator=generator)
    sigma = denoiser.sample_sigmas(count, generator)
    predicted: list[Tensor] = []
    for first in range(0, count, size):
        some = slice(first, first + size)
        parts = (torch.stack(x0[some]), noise[some], sigma[some])
        x, n, s = (part.to(denoiser.device) for part in parts)
        with torch.no_grad():
            predicted += denoiser(denoiser.add_noise(x, n, s), s, conds[some]).float().cpu()
        yield Progress(Phase.MEASURING, len(predicted), count)
    return Answers(x0, conds, list(noise), list(sigma), predicted)


def _in_turn(entries: Sequence[T], count: int) -> list[T]:
    return [entries[i % len(entries)] for i in range(count)]


@torch.no_grad()
def disagreement(denoiser: Denoiser, answers: Answers) -> float:
    """The loss of the model, as it is now, on a teacher's answers."""
    losses = [
        float(denoising_loss(denoiser, answers.noised([i], denoiser, torch.Generator()))) for i in range(len(answers.latents))
    ]
    return sum(losses) / len(losses)


def kept(
    denoiser: Denoiser, layers: Mapping[str, nn.Module], stacks: Sequence[Stack], held_out: Answers, without: float
) -> float:
    """How much of what the LoRA does to the model's predictions the concept does too: one is all, zero nothing. `without` is
    the disagreement of the bare model."""
    with attached(layers, stacks):
        return 1 - disagreement(denoiser, held_out) / without
