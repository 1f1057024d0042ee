"""Runs the demo model in the host and compares it with outputs of the same weights elsewhere.

Arguments: the weights, a safetensors file with `latents`, `sigmas` and the expected `velocity`, `context`, `encoded` and
`decoded` for `pictures`, and the prompts as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import boot
import comfy.utils
import torch
from safetensors.torch import load_file
from seqlora_pack.nodes import demo, host
from seqlora_pack.nodes.host import demo_model as demo_host
from seqlora_pack.seqlora.demo import micro
from seqlora_pack.seqlora.lora.layouts import unet_state_dict_to_native
from torch import Tensor


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def emphasis(clip) -> dict[str, float]:
    """How far '(cat:w)' moves a prompt's context, relative to w = 1."""

    def context(text: str) -> Tensor:
        return clip.encode_from_tokens(clip.tokenize(text))

    plain, empty = context("a red cat"), context("")
    expected = plain.clone()
    expected[:, 2] = empty[:, 2] + 1.5 * (plain[:, 2] - empty[:, 2])
    return {
        "weight_one": relative_error(context("a red (cat:1.0)"), plain),
        "weight_one_and_a_half": relative_error(context("a red (cat:1.5)"), expected),
    }


def literal_captions() -> list[float]:
    """How far captions with the host's signs for emphasis are from what they are without the host."""
    texts = ["a (zorv:0) cat", "miku_(vocaloid), red", "((zorv", "zorv :)", "a cat (small) (blue:1.5)", "cat"]
    with host.training_model(model, clip, vae, False) as taught:
        found = [caption.encoded["cross_attn"] for caption in taught.encode_captions(texts)]
    parts, tokenizer = micro.read_weights(weights)
    expected = micro.load_text_and_vae(parts, tokenizer)[0](torch.tensor([tokenizer(text) for text in texts]))
    return [relative_error(one[0], other) for one, other in zip(found, expected, strict=True)]


def fingerprints() -> list[str]:
    """Of the weights as they are, once more, and of another file."""
    found = [demo.DemoModel.fingerprint_inputs() for _ in range(2)]
    place, demo.WEIGHTS = demo.WEIGHTS, Path(sys.argv[2])
    found.append(demo.DemoModel.fingerprint_inputs())
    demo.WEIGHTS = place
    return found


def renaming_differences() -> list[str]:
    """Where the pack's own renaming of UNet weights differs from the host's."""
    parts, _ = micro.read_weights(weights)
    ours = unet_state_dict_to_native(parts["unet"], micro.UNET_CONFIG)
    hosts = {
        native: parts["unet"][name]
        for name, native in comfy.utils.unet_to_diffusers(demo_host.DemoConfig.unet_config).items()
        if name in parts["unet"]
    }
    return [key for key in sorted(ours.keys() | hosts.keys()) if ours.get(key) is not hosts.get(key)]


weights, data, prompts = Path(sys.argv[1]), load_file(sys.argv[2]), json.loads(sys.argv[3])
with torch.inference_mode():
    model, clip, vae = demo_host.load_demo_model(weights)
    context = torch.cat([clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in prompts])
    sigmas = data["sigmas"]
    conditioning = {"c_crossattn": data["context"], "y": model.model.encode_adm(cross_attn=data["context"])}
    denoised = model.model.apply_model(data["latents"], sigmas, **conditioning)
    velocity = (data["latents"] - denoised) / sigmas[:, None, None, None]
    encoded, decoded = vae.encode(data["pictures"]), vae.decode(data["encoded"])
    odd = torch.rand(1, 66, 71, 3, generator=torch.Generator().manual_seed(0))
    large = torch.rand(1, 160, 96, 3, generator=torch.Generator().manual_seed(0))
    tiled = vae.encode_tiled(large, tile_x=64, tile_y=64, overlap=16)
    factors = torch.tensor(model.model.latent_format.latent_rgb_factors)
    bias = torch.tensor(model.model.latent_format.latent_rgb_factors_bias)
    preview = torch.einsum("bchw,cr->bhwr", data["encoded"], factors) + bias
    blocks = data["decoded"].unflatten(1, (-1, 4)).unflatten(3, (-1, 4)).mean((2, 4)) * 2 - 1
    boot.report(
        timestep=float(model.model.model_sampling.timestep(torch.tensor(0.5))),
        unet=relative_error(velocity, data["velocity"]),
        text=relative_error(context, data["context"]),
        encode=relative_error(encoded, data["encoded"]),
        decode=relative_error(decoded, data["decoded"]),
        odd_shape=list(vae.encode(odd).shape),
        tiled_encode=relative_error(tiled, vae.encode(large)),
        tiled_decode=relative_error(vae.decode_tiled(tiled, tile_x=16, tile_y=16, overlap=4), vae.decode(tiled)),
        preview=float((preview - blocks).abs().mean()),
        emphasis=emphasis(clip),
        literal_captions=literal_captions(),
        renaming_differences=renaming_differences(),
        fingerprints=fingerprints(),
        clip_saves=len(clip.get_sd()),
        vae_saves=len(vae.get_sd()),
        deep_copy=type(model.clone(force_deepcopy=True).model.diffusion_model).__name__,
    )
