"""The host's own LoRA key maps for models on the meta device, and its UNet run with weights that the pack renamed.

With a folder: runs `UNetModel` on the weights and inputs in <folder>/unet.safetensors and saves what comes out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import boot
import comfy.lora
import comfy.model_base
import comfy.supported_models
import torch
from checkpoints import FLUX, OPERATIONS, SD3, SDXL, UNET
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file, save_file

SD15 = UNET | {
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "num_heads": 8,
    "legacy": False,
}
SSD1B = SDXL | {
    "transformer_depth": [0, 0, 2, 2, 4, 4],
    "transformer_depth_middle": -1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
}
SMALL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1],
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 24,
    "num_head_channels": 32,
    "legacy": False,
}


def key_map(family: type, config: dict[str, object]) -> dict[str, object]:
    """Shapes of the model's weights, and LoRA name -> [weight] or [weight, first row, rows] for every name the host takes."""
    model_config = family(config)
    model_config.set_inference_dtype(torch.float32, None)
    model = model_config.get_model({}, device="meta")
    names = {}
    for name, target in comfy.lora.model_lora_keys_unet(model, {}).items():
        if isinstance(target, str):
            names[name] = [target]
        elif target[1] is not None:
            names[name] = [target[0], *target[1][1:]]
    return {"shapes": {key: list(value.shape) for key, value in model.state_dict().items()}, "names": names}


@torch.no_grad()
def run_unet(folder: Path) -> None:
    tensors = load_file(folder / "unet.safetensors")
    inputs = {name: tensors.pop(f"input.{name}") for name in ("x", "timesteps", "context")}
    unet = UNetModel(**SMALL, **OPERATIONS).eval()
    unet.load_state_dict(tensors)
    save_file({"out": unet(**inputs)}, folder / "out.safetensors")


if __name__ == "__main__":
    run_unet(Path(sys.argv[1]))
    supported = comfy.supported_models
    boot.report(
        sd15=key_map(supported.SD15, SD15),
        sdxl=key_map(supported.SDXL, SDXL),
        ssd1b=key_map(supported.SSD1B, SSD1B),
        sd3=key_map(supported.SD3, SD3),
        flux=key_map(supported.Flux, FLUX),
    )
