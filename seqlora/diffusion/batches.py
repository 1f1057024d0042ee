"""Pictures as noised batches of one shape, and the denoising loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser


@dataclass(frozen=True)
class Examples:
    """A concept's training data: latents (c, h, w), of possibly different sizes, and one conditioning each."""

    latents: Sequence[Tensor]
    conds: Sequence[Any]

    def groups(self) -> list[list[int]]:
        """Indices by latent shape: a batch never mixes shapes."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, latent in enumerate(self.latents):
            by_shape.setdefault(tuple(latent.shape), []).append(i)
        return list(by_shape.values())

    def noised(self, picked: Sequence[int], denoiser: Denoiser, generator: torch.Generator) -> Batch:
        """These examples, with noise and noise levels drawn anew."""
        x0 = torch.stack([self.latents[i] for i in picked])
        noise = torch.randn(x0.shape, generator=generator)
        sigma = denoiser.sample_sigmas(len(picked), generator)
        device = denoiser.device
        return Batch(x0.float().to(device), noise.to(device), sigma.to(device), [self.conds[i] for i in picked], picked)


@dataclass(frozen=True)
class Answers(Examples):
    """Latents as they were noised once, and what another model said they are: to be taught what that model knows."""

    noise: Sequence[Tensor]
    sigma: Sequence[Tensor]  # scalars
    predicted: Sequence[Tensor]

    def noised(self, picked: Sequence[int], denoiser: Denoiser, generator: torch.Generator) -> Batch:
        parts = (self.latents, self.noise, self.sigma, self.predicted)
        x0, noise, sigma, predicted = (torch.stack([part[i] for i in picked]).float().to(denoiser.device) for part in parts)
        return Batch(x0, noise, sigma, [self.conds[i] for i in picked], picked, predicted)


@dataclass(frozen=True)
class Batch:
    x0: Tensor
    noise: Tensor
    sigma: Tensor
    cond: list[Any]
    picked: Sequence[int]  # which example each is
    predicted: Tensor | None = None  # by another model, which is to be followed instead of x0


class Batches:
    """Endless training batches from one generator: pictures without replacement, noise and noise levels drawn anew."""

    def __init__(self, examples: Examples, denoiser: Denoiser, batch_size: int, generator: torch.Generator):
        self.examples, self.denoiser, self.size, self.generator = examples, denoiser, batch_size, generator
        self._groups = examples.groups()
        self.queues: list[list[int]] = [[] for _ in self._groups]  # of pictures still to come, for each shape

    def _pick(self) -> list[int]:
        groups = self._groups
        weights = torch.tensor([len(g) for g in groups], dtype=torch.float)
        which = int(torch.multinomial(weights, 1, generator=self.generator))
        queue = self.queues[which]
        while len(queue) < self.size:
            order = torch.randperm(len(groups[which]), generator=self.generator)
            queue += [groups[which][i] for i in order.tolist()]
        self.queues[which] = queue[self.size :]
        return queue[: self.size]

    def next(self) -> Batch:
        return self.examples.noised(self._pick(), self.denoiser, self.generator)


def denoising_loss(denoiser: Denoiser, batch: Batch) -> Tensor:
    """Mean over samples of the weighted squared x0 error."""
    noisy = denoiser.add_noise(batch.x0, batch.noise, batch.sigma)
    wanted = batch.x0 if batch.predicted is None else batch.predicted
    error = (denoiser(noisy, batch.sigma, batch.cond).float() - wanted).square().flatten(1).mean(1)
    return (denoiser.loss_weight(batch.sigma) * error).mean()
