"""Networks run by diffusers, and the demo model: the core without ComfyUI. Whole pipelines are in `pipelines.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Pair, Stack, attached, choose_layers
from ..demo.pictures import generic_captions
from ..errors import SeqLoRAError
from ..keys import PREFIX, TRANSFORMER, diffusers_unet_names, layout_of, native_to_diffusers
from ..objective import discrete_noise, expand, flow_noise, flow_weight, from_table, logit_normal, min_snr_weight
from ..teaching import GENERIC_CAPTIONS

TIMESTEPS = 1000
SMALLEST_ALPHA = 2.0**-24  # a schedule that ends in pure noise would need an infinite sigma
Predict = Callable[[Tensor, Tensor, Sequence[Any]], Tensor]  # scaled noisy latents, timesteps (n,), conditionings


class FlowDenoiser:
    """A model that predicts the velocity noise - x0 (SD3, Flux, the demo model)."""

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


class HeadlessModel:
    """A diffusers network with its denoiser: what every model of this backend shares of the core's `teaching.Model`."""

    generic_captions: Sequence[str] = GENERIC_CAPTIONS
    picture_side: int  # pixels; what the model was trained on
    latent_shape: tuple[int, int, int]  # of such a picture
    default_guidance = 3.0

    def __init__(self, network: nn.Module, denoiser: Any, layout: Mapping[str, Any]):
        self.network, self.denoiser, self.layout = network, denoiser, layout
        self.fingerprint = fingerprint(network)

    def layers(self, targets: str) -> dict[str, nn.Module]:
        """By their names in a library: native for a UNet, `transformer.<module path>` for a transformer (see keys.py)."""
        chosen = choose_layers(self.network, targets, prefix="")
        if self.layout["family"] != "unet":
            return {TRANSFORMER + path: module for path, module in chosen.items()}
        native = diffusers_unet_names(self.network.config)  # type: ignore[arg-type]
        return {PREFIX + native[path]: module for path, module in chosen.items()}

    @contextmanager
    def using(self, composed: Mapping[str, Pair]) -> Iterator[None]:
        """While open, the model draws with these concepts; the weights are not touched.

        Raises SeqLoRAError for concepts of another model.
        """
        pairs, modules = self._by_path(composed), dict(self.network.named_modules())
        for path, (A, B) in pairs.items():
            module: Any = modules.get(path)
            if module is None or (module.out_features, module.in_features) != (A.shape[0], B.shape[0]):
                raise SeqLoRAError(
                    f"This model has no {A.shape[0]} x {B.shape[0]} layer {path}; use the model that the library belongs to."
                )
        with attached(modules, stacks_of(pairs, self.denoiser.device, self.denoiser.dtype)):
            yield

    def _by_path(self, composed: Mapping[str, Pair]) -> dict[str, Pair]:
        try:
            return native_to_diffusers(composed, self.layout)
        except SeqLoRAError as error:
            raise SeqLoRAError(
                f"These concepts were not taught to a {self.layout['family']} model like this one "
                f"(layer {next(iter(composed))}); use the model that the library belongs to."
            ) from error


class DemoModel(HeadlessModel):
    """The demo model."""

    generic_captions: Sequence[str] = generic_captions()
    picture_side = 64
    latent_shape = (16, 16, 16)

    def __init__(self, path: Path | None = None):
        from ..demo import micro

        self.micro = micro.load_micro(path or micro.WEIGHTS)
        unet = self.micro.unet

        def predict(x: Tensor, timestep: Tensor, cond: Sequence[Tensor]) -> Tensor:
            return micro.velocity(unet, x, timestep, torch.stack(list(cond)))

        super().__init__(unet, FlowDenoiser(predict, torch.device("cpu")), layout_of(unet.config))  # type: ignore[arg-type]

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        from ..demo.micro import PATCH

        latents = []
        for picture in pictures:
            height, width = (side // PATCH * PATCH for side in picture.shape[:2])
            pixels = picture[:height, :width].movedim(-1, 0).float() * 2 - 1
            latents.append(self.micro.vae.encode(pixels[None])[0])
        return latents

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> list[Tensor]:
        return list(self.micro.encode_text(list(captions)))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, 16, h, w) -> pictures (n, H, W, 3) in 0..1."""
        return (self.micro.vae.decode(latents).movedim(1, -1) + 1) / 2


def stacks_of(composed: Mapping[str, Pair], device: torch.device, dtype: torch.dtype) -> list[Stack]:
    """A composed adapter in the form that `attached` takes."""
    return [Stack([name], A[None].float().to(device), B[None].float().to(device), dtype) for name, (A, B) in composed.items()]


def fingerprint(model: nn.Module, samples: int = 8) -> str:
    """A hash of a few values of a few weights: tells fine-tunes of one family apart."""
    digest = hashlib.sha256()
    weights = sorted(model.named_parameters())
    for name, weight in weights[:: max(1, len(weights) // samples)]:
        values = weight.detach().flatten()[:16].float().cpu()
        digest.update(name.encode() + values.half().numpy().tobytes())
    return digest.hexdigest()[:16]
