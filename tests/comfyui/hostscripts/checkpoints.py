"""Tiny checkpoints with the real architectures, from a seed: they load through the host's own detection.

Run as a script with a folder, it makes one of each there, loads it and runs it once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import boot
import comfy.model_base
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import save_file
from torch import Tensor, nn

PREFIX = "model.diffusion_model."
OPERATIONS = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}

UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True}
SD15 = UNET | {
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 768,
    "num_heads": 8,
    "legacy": False,
}
SDXL = UNET | {
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "legacy": False,
}
SD3 = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "depth": 2,  # the width is 64 a block
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    "num_patches": 64 * 64,
    "pos_embed_max_size": 64,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


def make_sd15(path: Path, seed: int = 0) -> Path:
    """SD 1.5 layout: two levels of width 320, one block each. Takes latents (b, 4, h, w) and contexts (b, words, 768)."""
    return _save(UNetModel(**SD15, **OPERATIONS), path, seed)


def make_sd3(path: Path, seed: int = 0) -> Path:
    """SD3 layout, width 128, two blocks. Takes latents (b, 16, h, w), contexts (b, words, 4096) and pooled (b, 2048)."""
    return _save(OpenAISignatureMMDITWrapper(**SD3, **OPERATIONS), path, seed)


def make_flux(path: Path, seed: int = 0) -> Path:
    """Flux dev layout, width 128, a double and a single block. Latents (b, 16, h, w), contexts (b, words, 4096), pooled
    (b, 768)."""
    return _save(Flux(**FLUX, **OPERATIONS), path, seed)


def sdxl_without_weights() -> comfy.model_base.SDXL:
    """The full SDXL as the host builds it, on the meta device: names and shapes, no memory."""
    config = comfy.supported_models.SDXL(SDXL)
    config.set_inference_dtype(torch.float16, None)
    return config.get_model({}, device="meta")


def conditioning(model: comfy.model_base.BaseModel, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random text for a model made here, as keyword arguments of `apply_model`."""
    width, pooled = {"SD3": (4096, 2048), "Flux": (4096, 768)}.get(type(model).__name__, (768, 0))
    inputs = {"c_crossattn": torch.randn(batch, 20, width, generator=generator)}
    if pooled:
        inputs["y"] = torch.randn(batch, pooled, generator=generator)
    if isinstance(model, comfy.model_base.Flux):
        inputs["guidance"] = torch.full((batch,), 3.5)
    return inputs


@torch.no_grad()
def _save(module: nn.Module, path: Path, seed: int) -> Path:
    """Gives every weight a value, none of them zero, so that activations stay of order one and each layer matters."""
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    gains = {id(m.weight) for m in module.modules() if isinstance(m, norms) and m.weight is not None}
    for name, parameter in module.named_parameters():
        if id(parameter) in gains or name.endswith("norm.scale"):
            parameter.fill_(1)
        elif parameter.ndim < 2:
            parameter.normal_(0, 0.02, generator=generator)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    for name, buffer in module.named_buffers():
        if name == "pos_embed":
            buffer.normal_(0, 1, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({PREFIX + key: value.contiguous() for key, value in module.state_dict().items()}, path)
    return path


def check(make, folder: Path) -> dict[str, object]:
    """Makes, loads and runs one checkpoint; a model that the host takes for something else, or that is dead, fails here."""
    start = time.perf_counter()
    path = make(folder / f"{make.__name__[5:]}.safetensors")
    made = time.perf_counter()
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(path)).model
        loaded = time.perf_counter()
        generator = torch.Generator().manual_seed(1)
        latent = torch.randn(1, model.latent_format.latent_channels, 16, 16, generator=generator)
        text, other_text = (conditioning(model, 1, generator) for _ in range(2))
        sigma = model.model_sampling.percent_to_sigma(0.5)
        outputs = [model.apply_model(latent, torch.tensor([float(sigma)]), **inputs) for inputs in (text, other_text)]
    ended = time.perf_counter()
    return {
        "class": type(model).__name__,
        "type": model.model_type.name,
        "dtype": str(model.get_dtype()),
        "parameters": sum(p.numel() for p in model.diffusion_model.parameters()),
        "prediction_std": float(((latent - outputs[0]) / float(sigma)).std()),
        "text_matters": float((outputs[0] - outputs[1]).std()),
        "seconds": {"make": made - start, "load": loaded - made, "two_forwards": ended - loaded},
    }


if __name__ == "__main__":
    results = {make.__name__: check(make, Path(sys.argv[1])) for make in (make_sd15, make_sd3, make_flux)}
    shapes = {key: list(value.shape) for key, value in sdxl_without_weights().state_dict().items()}
    boot.report(**results, sdxl_tensors=len(shapes))
