"""The denoiser, in k-diffusion's terms: one callable that predicts the clean latents.

The noise level is sigma. Discrete (eps and v) models see x = x0 + sigma * noise, flow models (1 - sigma) x0 + sigma * noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

MIN_SNR_GAMMA = 5.0


class Denoiser(Protocol):
    """What the trainer needs of a model; one implementation per host."""

    device: torch.device
    dtype: torch.dtype  # in which adapters compute: float32 or bfloat16
    writes_in_place: bool  # into what a backward needs; False until `trace_layers` finds that it does

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
