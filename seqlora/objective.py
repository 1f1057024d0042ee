"""The denoising objective, in k-diffusion's terms: a denoiser is one callable that predicts the clean latents.

The noise level is sigma. Discrete (eps and v) models see x = x0 + sigma * noise, flow models (1 - sigma) x0 + sigma * noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

MIN_SNR_GAMMA = 5.0


class Denoiser(Protocol):
    """What the trainer needs of a model; one implementation per host."""

    device: torch.device
    dtype: torch.dtype  # in which adapters compute: float32 or bfloat16

    def sample_sigmas(self, n: int, generator: torch.Generator) -> Tensor:
        """n training noise levels, (n,) on the CPU."""
        ...

    def sigmas(self, steps: int) -> Tensor:
        """A falling schedule for sampling, (steps + 1,) on the CPU, ending at 0."""
        ...

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor: ...

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight (n,) of the squared x0 error."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        """x (n, ...), sigma (n,), one conditioning per sample -> x0 prediction; differentiable."""
        ...


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """n uniform numbers in 0..1, one from each nth of the range, in random order: far less noise in the loss."""
    offsets = torch.rand(n, generator=generator)
    return (torch.randperm(n, generator=generator) + offsets) / n


def logit_normal(n: int, generator: torch.Generator) -> Tensor:
    """n flow times in 0..1, stratified, the middle ones most (Esser et al. 2024)."""
    return torch.special.ndtri(stratified(n, generator).clamp(1e-3, 1 - 1e-3)).sigmoid()


def from_table(table: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n stratified noise levels of a discrete schedule."""
    return table[(stratified(n, generator) * len(table)).long().clamp(max=len(table) - 1)]


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def flow_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    sigma = expand(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def discrete_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    return x0 + expand(sigma, x0) * noise


def flow_weight(sigma: Tensor) -> Tensor:
    """Makes the squared x0 error the squared velocity error."""
    return 1 / sigma.clamp(min=1e-3).square()


def min_snr_weight(sigma: Tensor) -> Tensor:
    """Min-SNR-5 (Hang et al. 2023), the same in x0 terms for eps and v prediction: min(SNR, 5)."""
    return (1 / sigma.square()).clamp(max=MIN_SNR_GAMMA)


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


@dataclass(frozen=True)
class Batch:
    x0: Tensor
    noise: Tensor
    sigma: Tensor
    cond: list[Any]


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
        picked = self._pick()
        x0 = torch.stack([self.examples.latents[i] for i in picked])
        noise = torch.randn(x0.shape, generator=self.generator)
        sigma = self.denoiser.sample_sigmas(len(picked), self.generator)
        device = self.denoiser.device
        return Batch(x0.float().to(device), noise.to(device), sigma.to(device), [self.examples.conds[i] for i in picked])


def denoising_loss(denoiser: Denoiser, batch: Batch) -> Tensor:
    """Mean over samples of the weighted squared x0 error."""
    noisy = denoiser.add_noise(batch.x0, batch.noise, batch.sigma)
    error = (denoiser(noisy, batch.sigma, batch.cond).float() - batch.x0).square().flatten(1).mean(1)
    return (denoiser.loss_weight(batch.sigma) * error).mean()
