"""Denoisers of diffusers' models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..diffusion.denoiser import discrete_noise, expand, flow_noise, flow_weight, from_table, logit_normal, min_snr_weight

TIMESTEPS = 1000
SMALLEST_ALPHA = 2.0**-24  # a schedule that ends in pure noise would need an infinite sigma
Predict = Callable[[Tensor, Tensor, Sequence[Any]], Tensor]  # scaled noisy latents, timesteps (n,), conditionings


class FlowDenoiser:
    """A model that predicts the velocity noise - x0 (SD3, Flux, the demo model)."""

    writes_in_place = False

    def __init__(self, predict: Predict, device: torch.device, dtype: torch.dtype = torch.float32, shift: float = 1.0):
        self.predict, self.device, self.dtype, self.shift = predict, device, dtype, shift

    def _shifted(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def sample_sigmas(self, n: int, generator: torch.Generator) -> Tensor:
        return self._shifted(logit_normal(n, generator))

    def sigmas(self, steps: int) -> Tensor:
        return self._shifted(torch.linspace(1, 0, steps + 1))

    add_noise = staticmethod(flow_noise)
    loss_weight = staticmethod(flow_weight)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        velocity = self.predict(x.to(self.dtype), sigma * TIMESTEPS, cond)
        return x - expand(sigma, x) * velocity.float()


class DiscreteDenoiser:
    """A model of a DDPM schedule that predicts eps or v (SD1.5, SD2, SDXL); x = x0 + sigma * noise outside of it."""

    writes_in_place = False

    def __init__(self, predict: Predict, alphas_cumprod: Tensor, v_prediction: bool, device: torch.device, dtype: torch.dtype):
        self.predict, self.v_prediction, self.device, self.dtype = predict, v_prediction, device, dtype
        alphas = alphas_cumprod.cpu().double().clamp(min=SMALLEST_ALPHA)
        self.table = ((1 - alphas) / alphas).sqrt().float()

    def sample_sigmas(self, n: int, generator: torch.Generator) -> Tensor:
        return from_table(self.table, n, generator)

    def sigmas(self, steps: int) -> Tensor:
        at = torch.linspace(len(self.table) - 1, 0, steps).round().long()
        return torch.cat([self.table[at], torch.zeros(1)])

    add_noise = staticmethod(discrete_noise)
    loss_weight = staticmethod(min_snr_weight)

    def _timestep(self, sigma: Tensor) -> Tensor:
        logs = self.table.log().to(sigma.device)
        wanted = sigma.log()
        high = torch.searchsorted(logs, wanted).clamp(1, len(logs) - 1)
        low = high - 1
        return low + ((wanted - logs[low]) / (logs[high] - logs[low])).clamp(0, 1)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        wide = expand(sigma, x)
        scale = (wide.square() + 1).rsqrt()
        out = self.predict((x * scale).to(self.dtype), self._timestep(sigma), cond).float()
        if self.v_prediction:
            return x * scale.square() - wide * scale * out
        return x - wide * out
