"""The pipelines of each family of models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SeqLoRAError
from ..lora.layouts import layout_of
from ..lora.types import LoRAPair
from .denoisers import TIMESTEPS, DiscreteDenoiser, FlowDenoiser, Predict
from .pipelines import PipelineModel


class StableDiffusion(PipelineModel):
    """1.x and 2.x."""

    needs: tuple[str, ...] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    default_guidance = 7.5
    _learnable = {"clip_l": "text_encoder"}

    def _layout(self, network: Any) -> dict[str, Any]:
        return layout_of(network.config)

    def _denoiser(self, predict: Predict) -> DiscreteDenoiser:
        scheduler = self.pipe.scheduler
        prediction = scheduler.config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction") or not hasattr(scheduler, "alphas_cumprod"):
            raise SeqLoRAError(
                f"The pipeline's {type(scheduler).__name__} predicts '{prediction}' in a way that cannot be taught",
                "use a model with 'epsilon' or 'v_prediction' and a DDPM noise schedule",
            )
        return DiscreteDenoiser(predict, scheduler.alphas_cumprod, prediction == "v_prediction", self.device, self.dtype)

    def _predict(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return self.pipe.unet(x, timestep, cond["text"], return_dict=False)[0]

    def _encode(self, caption: str) -> dict[str, Tensor]:
        return {"text": self.pipe.encode_prompt(caption, self.device, 1, False)[0]}


class StableDiffusionXL(StableDiffusion):
    needs = (*StableDiffusion.needs, "text_encoder_2", "tokenizer_2")
    default_guidance = 5.0
    _learnable = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}

    def _predict(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        height, width = (side * self._squeeze for side in x.shape[2:])
        # Original size, crop, target size: every picture is taken for one of its own size, uncropped.
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=x.device)
        added = {"text_embeds": cond["pooled"], "time_ids": sizes.repeat(len(x), 1)}
        return self.pipe.unet(x, timestep, cond["text"], added_cond_kwargs=added, return_dict=False)[0]

    def _encode(self, caption: str) -> dict[str, Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(
            caption, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}


class StableDiffusion3(PipelineModel):
    """3 and 3.5; the T5 text encoder may be absent."""

    needs = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    patch = 2
    default_guidance = 7.0

    def _layout(self, network: Any) -> dict[str, Any]:
        return {"family": "sd3"}

    def _denoiser(self, predict: Predict) -> FlowDenoiser:
        tokens = (self.latent_shape[1] // self.patch) ** 2
        return FlowDenoiser(predict, self.device, self.dtype, timestep_shift(self.pipe.scheduler.config, tokens))

    def _predict(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return self.pipe.transformer(x, cond["text"], cond["pooled"], timestep, return_dict=False)[0]

    def _encode(self, caption: str) -> dict[str, Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(
            caption, None, None, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def _encode_picture(self, picture: Tensor) -> Tensor:
        largest = self.pipe.transformer.config.pos_embed_max_size * self.patch * self._squeeze
        if max(picture.shape[:2]) > largest:
            raise SeqLoRAError(
                f"A picture is {picture.shape[1]} x {picture.shape[0]} pixels, but this model's limit is {largest} a side",
                "make it smaller",
            )
        return super()._encode_picture(picture)


class Flux(PipelineModel):
    """Flux.1. Its own guidance, a number that the distilled network takes, is 1 in training and 3.5 while it draws."""

    needs = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    patch = 2
    default_guidance = 1.0  # classifier-free guidance on top
    guidance = 1.0
    drawing_guidance = 3.5
    _packed = 4

    def _default_latent_side(self, network: Any) -> int:
        return self.pipe.default_sample_size

    def _layout(self, network: Any) -> dict[str, Any]:
        return {"family": "flux"}

    def _denoiser(self, predict: Predict) -> FlowDenoiser:
        tokens = (self.latent_shape[1] // self.patch) ** 2
        return FlowDenoiser(predict, self.device, self.dtype, timestep_shift(self.pipe.scheduler.config, tokens))

    @contextmanager
    def using(self, composed: Mapping[str, LoRAPair]) -> Iterator[None]:
        with super().using(composed):
            self.guidance = self.drawing_guidance
            try:
                yield
            finally:
                self.guidance = type(self).guidance

    def _predict(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        height, width = (side // self.patch for side in x.shape[2:])
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).to(x)
        distilled = self.pipe.transformer.config.guidance_embeds
        out = self.pipe.transformer(
            F.pixel_unshuffle(x, self.patch).flatten(2).mT,
            cond["text"],
            cond["pooled"],
            timestep / TIMESTEPS,
            img_ids=places,
            txt_ids=places.new_zeros(cond["text"].shape[1], 3),
            guidance=torch.full_like(timestep, self.guidance) if distilled else None,
            return_dict=False,
        )[0]
        return F.pixel_shuffle(out.mT.unflatten(2, (height, width)), self.patch)

    def _encode(self, caption: str) -> dict[str, Tensor]:
        text, pooled, _ = self.pipe.encode_prompt(caption, None, device=self.device, num_images_per_prompt=1)
        return {"text": text, "pooled": pooled}


def timestep_shift(config: Mapping[str, Any], tokens: int) -> float:
    """The shift of a flow schedule's noise levels for pictures of so many tokens."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0))
    small, large = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return math.exp(low + (high - low) * (tokens - small) / (large - small))


FAMILIES: dict[str, type[PipelineModel]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}
