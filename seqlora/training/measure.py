"""What the layers see of a concept, and of everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.batches import Batch, Batches, denoising_loss
from ..diffusion.denoiser import Denoiser, expand
from ..diffusion.gradients import differentiable
from ..diffusion.sampling import euler_trajectory
from ..errors import SeqLoRAError
from ..method.moments import Moments, Recorder
from .progress import Phase, Progress, TrainingSteps

MEASURED_SAMPLES = 48  # noised pictures behind a concept's moments
JUDGED_SAMPLES = 16  # noised pictures behind each of the two errors that a concept is judged by
FELT_EVERY = 2  # sampling steps between two probes of what the output feels
PROBED_GROUP = 4  # captions that share these probes; no more are drawn at a time
DRAWN_POSITIONS = 4096  # of latents, at a time: one picture of 512 pixels, with its empty prompt beside it


def measure(
    denoiser: Denoiser, layers: Mapping[str, nn.Module], batches: Iterable[Batch], count: int
) -> TrainingSteps[Moments]:
    """Moments of the layers' inputs on noised training pictures, on the bare model."""
    recorder = Recorder(layers)
    for done, batch in enumerate(batches, 1):
        with torch.no_grad(), recorder.attached():
            denoiser(denoiser.add_noise(batch.x0, batch.noise, batch.sigma), batch.sigma, batch.cond)
        yield Progress(Phase.MEASURING, done, count)
    return recorder.moments()


def measure_concept(denoiser: Denoiser, layers: Mapping[str, nn.Module], batches: Batches) -> TrainingSteps[Moments]:
    """C_t, from the first batches of a training."""
    forwards = -(-MEASURED_SAMPLES // batches.size)
    return measure(denoiser, layers, (batches.next() for _ in range(forwards)), forwards)


@torch.no_grad()
def mean_error(denoiser: Denoiser, batches: Batches) -> float:
    """The denoising loss on a few batches. Raises SeqLoRAError where it is no number."""
    losses = [denoising_loss(denoiser, batches.next()) for _ in range(-(-JUDGED_SAMPLES // batches.size))]
    error = float(torch.stack(losses).mean())
    if not math.isfinite(error):
        raise SeqLoRAError("The model's prediction of the pictures is no number", "lower learning_rate or check the pictures")
    return error


def measure_prior(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    shape: Sequence[int],
    conds: Sequence[Any],
    uncond: Any,
    seed: int = 0,
    steps: int = 6,
) -> TrainingSteps[Moments]:
    """G and Gamma: moments along the model's own sampling of generic captions and the empty prompt; needs no data set.

    `shape` is that of a picture's latents: of large ones fewer are drawn at a time, so that no training needs more memory for
    this than for a step of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    recorder = Recorder(layers)
    size = next(n for n in (PROBED_GROUP, 2, 1) if n * math.prod(shape[1:]) <= DRAWN_POSITIONS or n == 1)
    count = -(-len(conds) // size)
    for done in range(count):
        first = done * size
        chosen = conds[first : first + size]
        noise = torch.randn(len(chosen), *shape, generator=generator)
        # Of the captions of a group each sends noise back in its turn, however many are drawn at a time.
        place, group = first % PROBED_GROUP, min(PROBED_GROUP, len(conds) - first // PROBED_GROUP * PROBED_GROUP)
        with recorder.attached():
            states = list(euler_trajectory(denoiser, noise, chosen, [uncond] * len(chosen), steps=steps))[:-1]
            for turn, (x, sigma) in enumerate(states[::FELT_EVERY]):
                one = turn % group - place
                if 0 <= one < len(chosen):
                    _probe_output(denoiser, recorder, x[one : one + 1], sigma[None], chosen[one : one + 1], generator)
        yield Progress(Phase.MEASURING, done + 1, count)
    return recorder.moments()


def _probe_output(
    denoiser: Denoiser, recorder: Recorder, x: Tensor, sigma: Tensor, cond: Sequence[Any], generator: torch.Generator
) -> None:
    """Sends unit noise back from the weighted prediction; one picture at a time needs no more memory than training."""
    recorder.recording_gradients = True
    with differentiable(denoiser):
        predicted = denoiser(x, sigma, cond)
        probe = torch.randn(x.shape, generator=generator).to(predicted)
        (predicted * probe * expand(denoiser.loss_weight(sigma).sqrt(), x)).sum().backward()
    recorder.recording_gradients = False
