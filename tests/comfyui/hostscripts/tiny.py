"""What the tests of training and applying share: a tiny model of a family, a text encoder and a VAE made of fixed noise."""

from __future__ import annotations

import hashlib
from pathlib import Path

import boot  # noqa: F401
import checkpoints
import comfy.model_management
import comfy.sd
import folder_paths
import torch
import torch.nn.functional as F
from seqlora_pack.nodes import host
from seqlora_pack.seqlora.demo.pictures import concept_pictures, held_out_emoji
from seqlora_pack.seqlora.library.store import Library
from seqlora_pack.seqlora.settings import Settings
from seqlora_pack.seqlora.training.request import TrainingRequest
from seqlora_pack.seqlora.training.result import TrainResult
from seqlora_pack.seqlora.training.train import train_steps
from torch import Tensor

MAKE = {"sd15": checkpoints.make_sd15, "sd3": checkpoints.make_sd3, "flux": checkpoints.make_flux}
# Learning rates at which 30 steps show an effect on random weights; real models want less.
RATES = {"sd15": (3e-3, 1e-3), "sd3": (1e-2, 3e-3), "flux": (1e-2, 3e-3)}
SIDES = {"sd15": 64, "sd3": 128, "flux": 128}  # of the pictures, in pixels; the UNet is the slowest by far


class NoiseClip:
    """Each word is a fixed random vector."""

    def __init__(self, model):
        self.width, self.pooled = {"SD3": (4096, 2048), "Flux": (4096, 768)}.get(type(model).__name__, (768, 0))

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def encode_from_tokens_scheduled(self, tokens: list[str]) -> list:
        words = [*tokens, *[""] * (8 - len(tokens))][:8]
        context = torch.stack([self._vector(word, self.width) for word in words])[None]
        extra = {"pooled_output": self._vector(" ".join(tokens), self.pooled)[None]} if self.pooled else {}
        return [[context, extra]]

    @staticmethod
    def _vector(text: str, width: int) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return torch.randn(width, generator=torch.Generator().manual_seed(seed))


class PatchVAE:
    """8 x 8 patches, projected to as many channels as the model takes by a fixed random matrix."""

    def __init__(self, model):
        self.format = model.latent_format
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(self.format.latent_channels, 192, generator=generator) / 192**0.5

    def encode(self, pixels: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(pixels.movedim(-1, 1) * 2 - 1, 8)
        return self.format.process_out(torch.einsum("kc,bchw->bkhw", self.matrix, patches) * 1.5)

    def decode(self, latents: Tensor) -> Tensor:
        patches = torch.einsum("ck,bkhw->bchw", torch.linalg.pinv(self.matrix), self.format.process_in(latents) / 1.5)
        return ((F.pixel_shuffle(patches, 8) + 1) / 2).clamp(0, 1).movedim(1, -1)


def load(family: str, folder: Path):
    """(patcher, clip, vae) as the host's loader nodes would give them, inside inference mode."""
    path = folder / f"{family}.safetensors"
    if not path.exists():
        MAKE[family](path)
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(str(path))
        return patcher, NoiseClip(patcher.model), PatchVAE(patcher.model)


def pictures(number: int, count: int = 4, side: int = 128) -> list[Tensor]:
    """Real pictures of a held-out emoji, (side, side, 3) in 0..1."""
    drawn, _ = concept_pictures(held_out_emoji()[number], count, seed=0)
    larger = F.interpolate((drawn + 1) / 2, size=(side, side), mode="bilinear", antialias=True)
    return list(larger.clamp(0, 1).movedim(1, -1))


def lesson_pictures(models, name: str = "thing") -> list[Tensor]:
    family = "sd15" if models[0].model.latent_format.latent_channels == 4 else "sd3"
    return pictures(len(name), side=SIDES[family])


def settings_for(family: str, **changes) -> Settings:
    coefficients, basis = RATES[family]
    return Settings(steps=30, batch_size=4, learning_rate=coefficients, basis_learning_rate=basis).with_(**changes)


def new_library(folder: Path, name: str) -> Library:
    return Library.create(folder / name, rank=4, capacity=8, targets="attention and mlp")


def train(
    models, library: Library, settings: Settings, checkpointing: bool = False, name: str = "thing", on_step=None
) -> TrainResult:
    """As the node does it, with a look at every step."""
    lesson = TrainingRequest(name, "zobiku", "thing", lesson_pictures(models, name))

    def watched(steps):
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                return end.value
            if on_step:
                on_step(progress)
            yield progress

    with torch.inference_mode(), host.training_model(*models, checkpointing) as model:
        return host.run_with_progress(watched(train_steps(library, lesson, settings, model)))


def outputs(patcher, load_first: bool = True) -> Tensor:
    """What the model makes of fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    model = patcher.model
    with torch.inference_mode():
        if load_first:
            comfy.model_management.load_models_gpu([patcher])
        latents = torch.randn(2, model.latent_format.latent_channels, 8, 8, generator=generator)
        inputs = checkpoints.conditioning(model, 2, generator)
        sigma = torch.full((2,), float(model.model_sampling.percent_to_sigma(0.4)))
        return model.apply_model(latents, sigma, **inputs).clone()


def use_folder(folder: Path) -> None:
    """Libraries and LoRAs are looked for here."""
    folder_paths.models_dir = str(folder)
    folder_paths.set_output_directory(str(folder / "output"))
    host.register_folder()
