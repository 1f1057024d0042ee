"""Euler sampling of any Denoiser with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser, expand


@torch.no_grad()
def euler_trajectory(
    denoiser: Denoiser, noise: Tensor, cond: Sequence[Any], uncond: Sequence[Any], guidance: float = 3.0, steps: int = 25
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every state on the way from unit noise to latents, with its noise level (a scalar); the last one's is 0.

    k-diffusion's Euler, in which flow and discrete models are one.
    """
    sigmas = denoiser.sigmas(steps).to(denoiser.device)
    x = noise.to(denoiser.device)
    x = denoiser.add_noise(torch.zeros_like(x), x, sigmas[0].expand(len(x)))
    for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
        yield x, here
        sigma = here.expand(2 * len(x))
        kept, dropped = denoiser(torch.cat([x, x]), sigma, [*cond, *uncond]).float().chunk(2)
        clean = dropped + guidance * (kept - dropped)
        x = x + (x - clean) / expand(here, x) * (there - here)
    yield x, sigmas[-1]


def euler(
    denoiser: Denoiser, noise: Tensor, cond: Sequence[Any], uncond: Sequence[Any], guidance: float = 3.0, steps: int = 25
) -> Tensor:
    """Latents (n, ...) from unit noise of the same shape."""
    for x, _ in euler_trajectory(denoiser, noise, cond, uncond, guidance, steps):
        latents = x
    return latents
