"""Teaches, applies and exports a concept on tiny instances of model families, and reports what happened to each.

Arguments: an empty folder and the names of families in zoo.py.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import boot
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
import torch.nn.functional as F
import zoo
from seqlora_pack.nodes import host
from seqlora_pack.nodes.host import apply
from seqlora_pack.nodes.host.forward import run_beside
from seqlora_pack.seqlora.backends.model import stacks_of
from seqlora_pack.seqlora.demo.pictures import concept_pictures, held_out_emoji
from seqlora_pack.seqlora.diffusion.batches import Batches, Examples, denoising_loss
from seqlora_pack.seqlora.errors import SeqLoRAError
from seqlora_pack.seqlora.library.export import export_composed
from seqlora_pack.seqlora.library.store import Library
from seqlora_pack.seqlora.lora.attach import attached
from seqlora_pack.seqlora.settings import Settings
from seqlora_pack.seqlora.training.request import TrainingRequest
from seqlora_pack.seqlora.training.result import TrainResult
from seqlora_pack.seqlora.training.train import train_steps
from torch import Tensor

CAPTION = "a photo of zobiku thing"
GENERIC = ("a red car", "a tree", "a house at night")  # the prior needs many more, this test only some


def pictures(side: int) -> list[Tensor]:
    drawn, _ = concept_pictures(held_out_emoji()[0], 4, seed=0)
    larger = F.interpolate((drawn + 1) / 2, size=(side, side), mode="bilinear", antialias=True)
    return list(larger.clamp(0, 1).movedim(1, -1))


class Trial:
    """One family, from its loader to the removal of what was applied."""

    def __init__(self, name: str, folder: Path):
        self.family, self.folder = zoo.FAMILIES[name], folder
        with torch.inference_mode():
            self.models = zoo.build(name)
        self.patcher = self.models[0]
        self.pictures = pictures(self.family.side)

    def train(self, name: str, steps: int, checkpointing: bool) -> TrainResult:
        rate = self.family.rate
        settings = Settings(steps=steps, batch_size=2, learning_rate=rate, basis_learning_rate=rate / 3)
        lesson = TrainingRequest("thing", "zobiku", "thing", self.pictures)
        library = Library.create(self.folder / name, 4, 4, "attention and mlp")
        with torch.inference_mode(), host.training_model(*self.models, checkpointing) as model:
            model.generic_captions = GENERIC
            return host.run_with_progress(train_steps(library, lesson, settings, model))

    def outputs(self, patcher: Any) -> Tensor:
        """What the host's sampler would get for fixed inputs."""
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([patcher])
            model, (_, clip, vae) = patcher.model, self.models
            latents = model.process_latent_in(vae.encode(torch.stack(self.pictures[:1])))
            latents = latents + torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
            cond = comfy.sampler_helpers.convert_cond(clip.encode_from_tokens_scheduled(CAPTION))
            shapes = [latents.shape]
            encoded = comfy.samplers.encode_model_conds(
                model.extra_conds, cond, latents, latents.device, "positive", latent_image=latents, denoise_mask=None, seed=0,
                latent_shapes=shapes,
            )  # fmt: skip
            inputs = {
                key: value.process_cond(batch_size=1, area=None, device=latents.device).cond
                for key, value in encoded[0]["model_conds"].items()
            }
            sigma = torch.full((1,), float(model.model_sampling.percent_to_sigma(0.4)))
            options = {"cond_or_uncond": [0], "sigmas": sigma, "sample_sigmas": torch.cat([sigma, sigma * 0])}
            options["wrappers"] = patcher.wrappers
            return model.apply_model(latents, sigma, **inputs, transformer_options=options).clone()

    def fixed_losses(self, library: Library) -> tuple[float, float]:
        """On the training pictures and fixed noise: of the bare model, and with the concept."""
        with host.training_model(*self.models, False) as model, torch.no_grad():
            examples = Examples(model.encode_pictures(self.pictures), model.encode_captions([CAPTION] * len(self.pictures)))
            concept = stacks_of(library.load("thing"), model.denoiser.device, model.denoiser.dtype)

            def mean() -> float:
                batches = Batches(examples, model.denoiser, 4, torch.Generator().manual_seed(99))
                return sum(float(denoising_loss(model.denoiser, batches.next())) for _ in range(6)) / 6

            bare = mean()
            with attached(model.linear_layers(), concept):
                return bare, mean()

    def with_hooks(self, library: Library) -> Tensor:
        with torch.no_grad():
            concept = stacks_of(library.load("thing"), torch.device("cpu"), torch.float32)
        layers = {f"diffusion_model.{path}": module for path, module in self.patcher.model.diffusion_model.named_modules()}
        with attached(layers, concept):
            return self.outputs(self.patcher)

    def loaded_by_host(self, path: Path) -> Tensor:
        with torch.inference_mode():
            patched, _ = comfy.sd.load_lora_for_models(self.patcher, None, comfy.utils.load_torch_file(str(path)), 1.0, 0.0)
        return self.outputs(patched)

    def exports(self, library: Library, bare: Tensor, applied: Tensor) -> dict[str, float | None]:
        """Error of each format in the host's loader as a share of what the concept changes; None: it has no such names."""
        errors: dict[str, float | None] = {
            "own file": share(self.loaded_by_host(library.path / library.find("thing").file), applied, bare)
        }
        for kind in ("comfyui", "kohya", "diffusers"):
            errors[kind] = None
            path = self.folder / f"{kind}.safetensors"
            with suppress(SeqLoRAError):
                export_composed(library, {"thing": 1.0}, path, kind, "fp32")
                errors[kind] = share(self.loaded_by_host(path), applied, bare)
        return errors

    def regions(self) -> bool:
        try:
            host.check_model(self.patcher.model.diffusion_model)
        except SeqLoRAError:
            return False
        return True

    def hooks_left(self) -> int:
        return sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in module.__dict__)
            for module in self.patcher.model.modules()
        )

    def run(self) -> dict[str, Any]:
        before = self.outputs(self.patcher)
        weights = {key: value.clone() for key, value in self.patcher.model.state_dict().items()}
        parameters = dict(self.patcher.model.named_parameters())
        taught = self.train("first", 20, False)
        library, report = taught.library, taught.report
        own = all(parameters[name] is now for name, now in self.patcher.model.named_parameters())
        after = self.outputs(self.patcher)
        bare, with_concept = self.fixed_losses(library)
        plain, thrifty = (self.train(name, 3, on).losses for name, on in (("plain", False), ("thrifty", True)))
        hooked = self.with_hooks(library)
        composed = library.compose({"thing": 1.0})
        with torch.inference_mode():
            patched = host.apply_adapter(self.patcher, composed, 1.0)
        applied = self.outputs(patched)
        targets = list(apply._targets(self.patcher.model, composed))
        beside = self.outputs(run_beside(self.patcher, apply._by_module(targets, 1.0)))
        exports = self.exports(library, before, applied)
        removed = self.outputs(self.patcher)
        return {
            "bare": bare,
            "with_concept": with_concept,
            "finite": all(map(torch.isfinite, map(torch.tensor, taught.losses))),
            "layers": len(library.base.layers),
            "left_out": report.layers_left_out or 0,
            "checkpointing_error": max(abs(a - b) / abs(a) for a, b in zip(plain, thrifty, strict=True)),
            "applied_error": share(applied, hooked, before),
            "beside_error": share(beside, hooked, before),
            "regions": self.regions(),
            "exports": exports,
            "own_weights": own,
            "outputs_kept": torch.equal(before, after),
            "removed_exactly": torch.equal(before, removed)
            and all(torch.equal(weights[key], value) for key, value in self.patcher.model.state_dict().items()),
            "hooks_left": self.hooks_left(),
            "in_training": comfy.model_management.in_training,
        }


def share(found: Tensor, expected: Tensor, bare: Tensor) -> float:
    """The error as a share of what the concept changes."""
    return float((found - expected).norm() / (expected - bare).norm())


def trial(name: str, folder: Path) -> dict[str, Any]:
    try:
        return Trial(name, folder).run()
    except Exception as error:  # one that fails must not hide the others
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {"failed": f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"}


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    boot.report(**{name: trial(name, Path(folder) / str(number)) for number, name in enumerate(names)})
