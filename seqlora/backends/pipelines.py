"""Whole text-to-image pipelines from a local diffusers folder: Stable Diffusion 1, 2, XL and 3, and Flux.

Only one part of a pipeline is on the GPU at a time: text encoders and autoencoder come when they are needed and go again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Pair
from ..errors import SeqLoRAError
from ..keys import layout_of
from .diffusers import TIMESTEPS, DiscreteDenoiser, FlowDenoiser, HeadlessModel, Predict

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # not loaded


def load_pipeline(path: Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PipelineModel:
    """The pipeline in a folder that diffusers' `save_pretrained` wrote, frozen. Nothing is downloaded.

    device: the GPU if there is one. dtype: float32 or bfloat16; bfloat16 on a GPU that computes in it, else float32.
    Raises SeqLoRAError for a folder that holds no pipeline, one that cannot be taught, or an incomplete one.
    """
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        kind = str(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SeqLoRAError(
            f"There is no diffusers pipeline at {path}; give a local folder with a model_index.json, or 'demo'."
        ) from error
    if kind not in FAMILIES:
        raise SeqLoRAError(f"{path} holds a {kind}, which cannot be taught; these can: {', '.join(FAMILIES)}.")
    family = FAMILIES[kind]
    missing = [part for part in family.needs if not any(index.get(part) or [])]
    if missing:
        raise SeqLoRAError(f"The pipeline at {path} has no {missing[0]}; give a complete {kind}.")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        dtype = torch.bfloat16 if fast else torch.float32
    return family(_read(path, index, dtype), device, dtype)


def _read(path: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    try:
        import diffusers
        import transformers  # noqa: F401  without it diffusers has no pipelines
    except ImportError as error:
        raise SeqLoRAError(f"{error.name} is missing; run: pip install diffusers transformers") from error
    options: dict[str, Any] = {part: None for part in UNUSED if part in index}
    if "requires_safety_checker" in index:
        options["requires_safety_checker"] = False
    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    options["dtype" if version >= (0, 41) else "torch_dtype"] = dtype
    weights = [file.name for file in path.glob("*/diffusion_pytorch_model*.safetensors")]
    variant = "fp16" if weights and all(".fp16" in name for name in weights) else None
    try:
        return diffusers.DiffusionPipeline.from_pretrained(path, local_files_only=True, variant=variant, **options)
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SeqLoRAError(f"The pipeline at {path} cannot be loaded ({reason}); check that the folder is complete.") from error


class PipelineModel(HeadlessModel):
    """What the families share. A conditioning is a dict of tensors of one caption, without a batch dimension."""

    needs: tuple[str, ...]  # components without which nothing works; the network first
    patch = 1  # side of the squares of latents that the network takes as one

    def __init__(self, pipe: Any, device: torch.device, dtype: torch.dtype):
        self.pipe, self.device, self.dtype = pipe, device, dtype
        network = getattr(pipe, self.needs[0])
        channels = pipe.vae.config.latent_channels
        if network.config.in_channels != channels * self._packed:
            raise SeqLoRAError(
                f"The {self.needs[0]} takes {network.config.in_channels} channels, but the autoencoder gives {channels}: "
                "this is an inpainting or control model; use a text-to-image one."
            )
        network.eval().requires_grad_(False).to(device)
        if device.type == "cuda":
            network.enable_gradient_checkpointing()

        def predict(x: Tensor, timestep: Tensor, cond: Sequence[Mapping[str, Tensor]]) -> Tensor:
            together = {key: torch.stack([one[key] for one in cond]).to(device, dtype) for key in cond[0]}
            return self._predict(x, timestep, together)

        self._squeeze = pipe.vae_scale_factor  # pixels per latent, a side
        latent_side = self._default_latent_side(network)
        self.picture_side = latent_side * self._squeeze
        self.latent_shape = (channels, latent_side, latent_side)
        super().__init__(network, self._denoiser(predict), self._layout(network))

    _packed = 1  # latents in one channel of the network's input

    def _default_latent_side(self, network: Any) -> int:
        size = network.config.sample_size
        return size if isinstance(size, int) else max(size)

    def _layout(self, network: Any) -> dict[str, Any]:
        raise NotImplementedError

    def _denoiser(self, predict: Predict) -> Any:
        raise NotImplementedError

    def _predict(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The network's own output for latents (n, c, h, w)."""
        raise NotImplementedError

    def _encode(self, caption: str) -> dict[str, Tensor]:
        """Tensors with a batch dimension of one."""
        raise NotImplementedError

    @contextmanager
    def _on_device(self, *parts: nn.Module | None) -> Iterator[None]:
        """These parts on the device and the network off it, so that what fits alone is enough."""
        if self.device.type == "cpu":
            yield
            return
        modules = [part for part in parts if part is not None]
        self.network.to("cpu")
        try:
            for module in modules:
                module.to(self.device)
            yield
        finally:
            for module in modules:
                module.to("cpu")
            self.network.to(self.device)

    @torch.no_grad()
    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Pictures (h, w, 3) in 0..1 -> latents (c, h', w') on the CPU; the middle that whole patches cover."""
        with self._on_device(self.pipe.vae):
            return [self._encode_picture(picture) for picture in pictures]

    def _encode_picture(self, picture: Tensor) -> Tensor:
        unit = self._squeeze * self.patch
        height, width = (side // unit * unit for side in picture.shape[:2])
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        pixels = picture[top : top + height, left : left + width].movedim(-1, 0)[None] * 2 - 1
        vae = self.pipe.vae
        latent = vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mode().float().cpu()[0]
        return (latent - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) -> pictures (n, H, W, 3) in 0..1, on the CPU; one at a time, for memory."""
        vae = self.pipe.vae
        latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        with self._on_device(vae):
            pictures = [vae.decode(one[None].to(self.device, self.dtype)).sample.float().cpu()[0] for one in latents]
        return (torch.stack(pictures).movedim(1, -1) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        encoders = [getattr(self.pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
        with self._on_device(*encoders):
            by_caption = {c: {key: value[0] for key, value in self._encode(c).items()} for c in dict.fromkeys(captions)}
        return [by_caption[caption] for caption in captions]


class StableDiffusion(PipelineModel):
    """1.x and 2.x."""

    needs: tuple[str, ...] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    default_guidance = 7.5

    def _layout(self, network: Any) -> dict[str, Any]:
        return layout_of(network.config)

    def _denoiser(self, predict: Predict) -> DiscreteDenoiser:
        scheduler = self.pipe.scheduler
        prediction = scheduler.config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction") or not hasattr(scheduler, "alphas_cumprod"):
            raise SeqLoRAError(
                f"The pipeline's {type(scheduler).__name__} predicts '{prediction}' in a way that cannot be taught; "
                "use a model with 'epsilon' or 'v_prediction' and a DDPM noise schedule."
            )
        return DiscreteDenoiser(predict, scheduler.alphas_cumprod, prediction == "v_prediction", self.device, self.dtype)

    def _predict(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return self.pipe.unet(x, timestep, cond["text"], return_dict=False)[0]

    def _encode(self, caption: str) -> dict[str, Tensor]:
        return {"text": self.pipe.encode_prompt(caption, self.device, 1, False)[0]}


class StableDiffusionXL(StableDiffusion):
    needs = (*StableDiffusion.needs, "text_encoder_2", "tokenizer_2")
    default_guidance = 5.0

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
                f"A picture is {picture.shape[1]} x {picture.shape[0]} pixels, but this model's limit is {largest} a side; "
                "make it smaller."
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
    def using(self, composed: Mapping[str, Pair]) -> Iterator[None]:
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
