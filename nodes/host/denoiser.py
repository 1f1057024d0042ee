"""The core's denoiser, by the host's model_sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.ldm.modules.attention
import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import comfy.weight_adapter
import torch
from torch import Tensor

from ...seqlora.diffusion.denoiser import flow_weight, from_table, logit_normal, min_snr_weight
from ...seqlora.errors import SeqLoRAError
from .belonging import caption_fits
from .gradients import OrdinaryWeights, _plain_attention


@dataclass(eq=False)
class Caption:
    """An encoded caption, and what the model takes of it for latents of a size (SDXL is told the size, for example)."""

    encoded: dict[str, Any]
    inputs: dict[tuple[int, ...], dict[str, Any]] = field(default_factory=dict)

    @property
    def learning(self) -> bool:
        """Whether the text has a gradient."""
        return any(isinstance(part, Tensor) and part.requires_grad for part in self.encoded.values())


class HostDenoiser:
    """`objective.Denoiser` over any model of the host, by its own `model_sampling` and `apply_model`."""

    def __init__(self, patcher: Any):
        self.patcher, self.model, self.loaded = patcher, patcher.model, False
        self.writes_in_place = False
        self.tried = False  # whether a first pass has shown that text and model belong together
        self.weights = OrdinaryWeights()
        # A model that is told where its step ends is told so once for a batch.
        self.one_by_one = bool(self.model.model_config.unet_config.get("meanflow"))
        self.device: torch.device = patcher.load_device
        self.sampling = patcher.get_model_object("model_sampling")
        inference = patcher.object_patches.get("manual_cast_dtype", None) or self.model.get_dtype_inference()
        self.dtype = torch.bfloat16 if inference == torch.bfloat16 else torch.float32
        self.flow = isinstance(self.sampling, comfy.model_sampling.CONST)

    def sample_sigmas(self, n: int, generator: torch.Generator) -> Tensor:
        if self.flow:  # then the model's own shift
            times = logit_normal(n, generator)
            return torch.tensor([float(self.sampling.percent_to_sigma(1 - time)) for time in times.tolist()])
        table = self.sampling.sigmas.detach().float().cpu()
        return from_table(table, n, generator).clone()

    def sigmas(self, steps: int) -> Tensor:
        schedule = "simple" if self.flow else "normal"
        return comfy.samplers.calculate_sigmas(self.sampling, schedule, steps).detach().float().cpu().clone()

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return self.sampling.noise_scaling(sigma.reshape(-1, *[1] * (x0.ndim - 1)), noise.clone(), x0.clone())

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return flow_weight(sigma) if self.flow else min_snr_weight(sigma)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Sequence[Caption]) -> Tensor:
        if not self.loaded:  # not before: encoding pictures and captions may have pushed the model out
            self.load()
        if not self.tried:
            with caption_fits(self.model.diffusion_model, cond[0].encoded):
                predicted = self._together(x, sigma, cond)
            self.tried = True
            return predicted
        return self._together(x, sigma, cond)

    def _together(self, x: Tensor, sigma: Tensor, cond: Sequence[Caption]) -> Tensor:
        """In one pass where the captions can be joined, else one by one."""
        inputs = [self.inputs_for(caption, x) for caption in cond]
        first = inputs[0]
        if not self.one_by_one and all(
            one.keys() == first.keys() and all(first[key].can_concat(one[key]) for key in first) for one in inputs[1:]
        ):
            return self.predict(x, sigma, inputs)
        singles = [self.predict(x[i : i + 1], sigma[i : i + 1], [one]) for i, one in enumerate(inputs)]
        return torch.cat(singles)

    def predict(self, x: Tensor, sigma: Tensor, inputs: Sequence[Mapping[str, Any]]) -> Tensor:
        joined = {key: value.concat([one[key] for one in inputs[1:]]) for key, value in inputs[0].items()}
        # Not the user's attention: some kernels have no backward, and fail silently. The steps are for models that learn where
        # one ends: at a step of no length these predict what any flow model does.
        options = {
            "optimized_attention_override": _plain_attention,
            "cond_or_uncond": [0],
            "sigmas": sigma,
            "sample_sigmas": sigma[:1].repeat(2),
        }
        return self.model.apply_model(x, sigma, **joined, transformer_options=options)

    def inputs_for(self, caption: Caption, x: Tensor) -> dict[str, Any]:
        """What the model's own sampler would make of the caption, for one sample."""
        shape = tuple(x.shape[1:])
        if shape not in caption.inputs:
            with torch.set_grad_enabled(caption.learning):
                caption.inputs[shape] = self._inputs_of(caption, shape)
        return caption.inputs[shape]

    def _inputs_of(self, caption: Caption, shape: tuple[int, ...]) -> dict[str, Any]:
        empty = torch.zeros(1, *shape, device=self.device)
        encoded = comfy.samplers.encode_model_conds(
            self.model.extra_conds,
            [caption.encoded],
            empty,
            self.device,
            "positive",
            latent_image=empty,
            denoise_mask=None,
            seed=0,
            latent_shapes=[empty.shape],
        )
        conds = encoded[0]["model_conds"].items()
        return {key: value.process_cond(batch_size=1, area=None, device=self.device) for key, value in conds}

    def load(self) -> None:
        """Brings the whole model to its device, pushing others out; a model in parts would be cut up between two passes."""
        with torch.inference_mode():  # as everywhere in the host: upstream patches write into inference tensors
            comfy.model_management.load_models_gpu([self.patcher], memory_required=1e20, force_full_load=True)
        if getattr(self.model, "model_lowvram", False):
            raise SeqLoRAError("The model does not fit into this device's memory as a whole", "use a smaller or quantised one")
        self.patcher.pre_run()
        self.weights.lend(self.model)
        self.loaded = True

    def rest(self) -> None:
        """Before anything else wants memory: the host may then move the model, which `load` brings back."""
        self.weights.give_back()
        self.loaded = False
