"""A second base model: a small MMDiT (as in SD3) between the demo model's own text encoder and autoencoder.

python -m demo_model.train_mmdit    writes build/emoji101/mmdit.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from seqlora.backends.denoisers import FlowDenoiser
from seqlora.backends.model import HeadlessModel
from seqlora.demo.demo_model import DemoModel
from seqlora.demo.micro import CONTEXT_DIM, IMAGE_SIZE, LATENT_CHANNELS, PATCH, MicroModel, load_text_and_vae, read_weights

WEIGHTS = Path("build/emoji101/mmdit.safetensors")
HEADS, HEAD_WIDTH, PATCH_SIZE = 6, 32, 2
CONFIG = {  # diffusers' names
    "sample_size": IMAGE_SIZE // PATCH,
    "patch_size": PATCH_SIZE,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_layers": 6,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_WIDTH,
    "joint_attention_dim": CONTEXT_DIM,
    "caption_projection_dim": HEADS * HEAD_WIDTH,
    "pooled_projection_dim": CONTEXT_DIM,  # the mean of the context
    "pos_embed_max_size": IMAGE_SIZE // PATCH // PATCH_SIZE,
    "qk_norm": "rms_norm",
}


def velocity(transformer: nn.Module, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    """Latents (b, 16, 16, 16), timesteps (b,) in 0..1000, context (b, words, 128) -> velocity, of the latents' shape."""
    pooled = context.mean(1)
    return transformer(x, timestep=timestep, encoder_hidden_states=context, pooled_projections=pooled).sample


class MMDiTModel(DemoModel):
    """The demo model with an MMDiT instead of its UNet."""

    def __init__(self, transformer: nn.Module):
        parts, tokenizer = read_weights()
        self.micro = MicroModel(transformer, *load_text_and_vae(parts, tokenizer), tokenizer)

        def predict(x: Tensor, timestep: Tensor, cond: Sequence[Tensor]) -> Tensor:
            return velocity(transformer, x, timestep, torch.stack(list(cond)))

        HeadlessModel.__init__(self, transformer, FlowDenoiser(predict, torch.device("cpu")), {"family": "sd3"})


def load_mmdit(path: Path = WEIGHTS) -> MMDiTModel:
    if not path.exists():
        raise SystemExit(f"{path} is missing: train it with `python -m demo_model.train_mmdit`.")
    transformer = SD3Transformer2DModel(**CONFIG)
    transformer.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return MMDiTModel(transformer.eval().requires_grad_(False))
