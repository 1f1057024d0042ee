"""Tiny random instances of the model families that the host loads: its own classes, two blocks or so, width 64 to 256.

Text encoders and VAEs of most are too large for a test: the text is fixed random vectors of the right shapes, and a picture
becomes latents of the family's own format by a fixed random matrix.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import boot  # noqa: F401
import checkpoints
import comfy.model_management
import comfy.model_patcher
import comfy.quant_ops
import comfy.supported_models
import torch
import torch.nn.functional as F
from checkpoints import FLUX
from seqlora_pack.seqlora.lora.targets import choose_layers
from torch import Tensor, nn

WORDS = 8  # of every caption


@dataclass(frozen=True)
class Family:
    """How to make one: the host's class of `comfy.supported_models`, what its detection would say, and what its text is."""

    host_class: str
    config: Mapping[str, Any]
    text: tuple[int, ...]  # shape of a caption's vectors; the first is WORDS unless the family has several
    pooled: int = 0
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # further vectors, by name
    side: int = 64  # of pictures, in pixels
    rate: float = 1e-2  # at which 20 steps show an effect
    quantised: str = ""  # the host's name of the format in which the blocks' weights lie


UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "use_spatial_transformer": True,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "num_head_channels": 32,
    "use_temporal_attention": False,
    "legacy": False,
}
SD15 = UNET | {"context_dim": 768, "use_linear_in_transformer": False, "adm_in_channels": None}
SDXL = UNET | {"context_dim": 2048, "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816}
SD3 = checkpoints.SD3 | {"pos_embed_scaling_factor": None}
FLUX2 = FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "context_in_dim": 15360,
    "axes_dim": [32, 32, 32, 32],
    "mlp_ratio": 3.0,
    "theta": 2000,
    "global_modulation": True,
    "mlp_silu_act": True,
    "qkv_bias": False,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
}
CHROMA = {key: value for key, value in FLUX.items() if key != "guidance_embed"} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": 0,
    "in_dim": 64,
    "out_dim": 128,
    "hidden_dim": 64,
    "n_layers": 2,
}
RADIANCE = CHROMA | {
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 16,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 2,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 512,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}
QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1}
LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": 2304,
    "dim": 192,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "qk_norm": True,
    "multiple_of": 64,
    "ffn_dim_multiplier": 1.0,
}
ZIMAGE = LUMINA | {
    "cap_feat_dim": 2560,
    "dim": 256,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 128,
    "out_dim": 16,
    "num_heads": 1,
    "ffn_dim": 256,
    "num_layers": 2,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "in_dim": 16,
}
HUNYUAN_VIDEO = {key: value for key, value in FLUX.items() if key != "txt_ids_dims"} | {
    "image_model": "hunyuan_video",
    "patch_size": [1, 2, 2],
    "theta": 256,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
HUNYUAN_VIDEO_15 = HUNYUAN_VIDEO | {
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "vec_in_dim": None,
    "guidance_embed": False,
    "context_in_dim": 3584,
    "byt5": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
    "meanflow_sum": True,
}
HUNYUAN_IMAGE = HUNYUAN_VIDEO | {
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "axes_dim": [64, 64],
    "vec_in_dim": None,
    "guidance_embed": False,
    "context_in_dim": 3584,
    "byt5": True,
}
LTXV = {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2, "cross_attention_dim": 128}
LTX2 = LTXV | {
    "image_model": "ltxav",
    "audio_cross_attention_dim": 64,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 32,
    "caption_channels": 256,
    "connector_num_attention_heads": 4,
    "connector_attention_head_dim": 64,
}
COSMOS = {
    "in_channels": 16,
    "out_channels": 16,
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "concat_padding_mask": True,
    "model_channels": 128,
    "num_heads": 1,
    "num_blocks": 2,
    "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
}
COSMOS1 = COSMOS | {
    "image_model": "cosmos",
    "block_config": "FA-CA-MLP",
    "block_x_format": "THWBD",
    "pos_emb_learnable": False,
    "affline_emb_norm": True,
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}
PREDICT2 = COSMOS | {
    "image_model": "cosmos_predict2",
    "pos_emb_learnable": True,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_enable_fps_modulation": False,
}
OMNIGEN = {
    "image_model": "omnigen2",
    "axes_dim_rope": [40, 40, 40],
    "axes_lens": [1024, 1664, 1664],
    "hidden_size": 120,
    "num_attention_heads": 1,
    "num_kv_heads": 1,
    "multiple_of": 64,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "text_feat_dim": 2048,
    "timestep_scale": 1000.0,
}
BOOGU = {key: value for key, value in OMNIGEN.items() if key != "text_feat_dim"} | {
    "image_model": "boogu",
    "num_double_stream_layers": 1,
    "instruction_feat_dim": 4096,
}
HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 128,
    "axes_dims_rope": [64, 32, 32],
    "caption_channels": [4096, 4096],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "out_channels": 16,
    "llama_layers": [0, 1],
    "num_attention_heads": 1,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "num_layers": 1,
    "num_single_layers": 1,
    "patch_size": 2,
    "text_emb_dim": 2048,
}
PIXART = {
    "image_model": "pixart_sigma",
    "micro_condition": False,
    "num_heads": 2,
    "hidden_size": 128,
    "patch_size": 2,
    "in_channels": 4,
    "depth": 2,
    "model_max_length": 300,
    "pe_interpolation": 1,
    "input_size": 64,
}
KANDINSKY = {
    "image_model": "kandinsky5",
    "model_dim": 128,
    "axes_dims": (32, 48, 48),
    "time_dim": 64,
    "ff_dim": 256,
    "visual_embed_dim": 132,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
}
COGVIDEO = {
    "image_model": "cogvideox",
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "time_embed_dim": 64,
    "num_layers": 2,
    "in_channels": 16,
    "use_rotary_positional_embeddings": True,
}
KREA2 = {
    "image_model": "krea2",
    "features": 128,
    "channels": 16,
    "patch": 2,
    "layers": 2,
    "heads": 1,
    "kvheads": 1,
    "txtlayers": 2,
    "txtdim": 64,
    "txtheads": 1,
    "txtkvheads": 1,
}
IDEOGRAM = {
    "image_model": "ideogram4",
    "in_channels": 128,
    "num_layers": 2,
    "num_attention_heads": 1,
    "attention_head_dim": 128,
    "intermediate_size": 256,
    "adaln_dim": 32,
    "llm_features_dim": 512,
}
PIXELDIT = {
    "image_model": "pixeldit_t2i",
    "num_groups": 2,
    "hidden_size": 128,
    "pixel_attn_hidden_size": 64,
    "pixel_num_groups": 2,
    "patch_depth": 2,
    "pixel_depth": 1,
}
LENS = {"image_model": "lens", "num_layers": 2, "num_attention_heads": 2, "enc_hidden_dim": 64, "selected_layer_index": (0, 1)}

FAMILIES = {
    "SD 1.5": Family("SD15", SD15, (WORDS, 768), rate=5e-2),
    "SDXL": Family("SDXL", SDXL, (WORDS, 2048), 1280, rate=5e-2),
    "SD3": Family("SD3", SD3, (WORDS, 4096), 2048),
    "Flux.1 dev": Family("Flux", FLUX, (WORDS, 4096), 768),
    **{f"Flux.1 dev, {kind}": Family("Flux", FLUX, (WORDS, 4096), 768, quantised=kind) for kind in comfy.quant_ops.QUANT_ALGOS},
    "Flux.1 schnell": Family("FluxSchnell", FLUX | {"guidance_embed": False}, (WORDS, 4096), 768),
    "Flux.1 Fill": Family("Flux", FLUX | {"in_channels": 96}, (WORDS, 4096), 768),
    "LongCat-Image": Family(
        "LongCatImage",
        FLUX | {"guidance_embed": False, "vec_in_dim": None, "context_in_dim": 3584, "txt_ids_dims": [1, 2]},
        (WORDS, 3584),
    ),
    "Flux.2": Family("Flux2", FLUX2, (WORDS, 15360), side=128),
    "Chroma": Family("Chroma", CHROMA, (WORDS, 4096)),
    "Chroma Radiance": Family("ChromaRadiance", RADIANCE, (WORDS, 4096)),
    "Qwen-Image": Family("QwenImage", QWEN, (WORDS, 3584)),
    "Qwen-Image-Edit": Family("QwenImage", QWEN | {"default_ref_method": "index_timestep_zero"}, (WORDS, 3584)),
    "Z-Image": Family("ZImage", ZIMAGE, (WORDS, 2560)),
    "Z-Image Omni": Family("ZImage", ZIMAGE | {"siglip_feat_dim": 64}, (WORDS, 2560)),
    "Lumina 2": Family("Lumina2", LUMINA, (WORDS, 2304)),
    "Wan 2.1 T2V": Family("WAN21_T2V", WAN, (WORDS, 4096)),
    "Wan 2.2 I2V": Family("WAN21_I2V", WAN | {"model_type": "i2v", "in_dim": 36}, (WORDS, 4096)),
    "Wan 2.2 5B": Family("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, (WORDS, 4096), side=128),
    "Wan 2.1 VACE": Family("WAN21_Vace", WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}, (WORDS, 4096)),
    "HunyuanVideo": Family("HunyuanVideo", HUNYUAN_VIDEO, (WORDS, 4096), 768),
    "HunyuanVideo 1.5": Family(
        "HunyuanVideo15", HUNYUAN_VIDEO_15, (WORDS, 3584), 1, {"conditioning_byt5small": (WORDS, 1472)}, side=128
    ),
    "HunyuanImage 2.1": Family(
        "HunyuanImage21", HUNYUAN_IMAGE, (WORDS, 3584), 1, {"conditioning_byt5small": (WORDS, 1472)}, side=128
    ),
    "HunyuanImage 2.1 distilled": Family(
        "HunyuanImage21",
        HUNYUAN_IMAGE | {"meanflow": True},
        (WORDS, 3584),
        1,
        {"conditioning_byt5small": (WORDS, 1472)},
        side=128,
    ),
    "LTX-Video": Family("LTXV", LTXV, (WORDS, 4096), extra={"attention_mask": (WORDS,)}, side=128),
    "LTX-2": Family("LTXAV", LTX2, (WORDS, 512), side=128),
    "AuraFlow": Family(
        "AuraFlow",
        {
            "cond_seq_dim": 2048,
            "dim": 128,
            "n_heads": 1,
            "n_layers": 2,
            "n_double_layers": 1,
            "global_conddim": 128,
            "max_seq": 256,
        },
        (WORDS, 2048),
    ),
    "HiDream-I1": Family("HiDream", HIDREAM, (WORDS, 4096), 2048, {"conditioning_llama3": (2, WORDS, 4096)}),
    "Cosmos 1": Family("CosmosT2V", COSMOS1, (WORDS, 1024)),
    "Cosmos Predict2": Family("CosmosT2IPredict2", PREDICT2, (WORDS, 1024)),
    "Anima": Family(
        "Anima", PREDICT2 | {"image_model": "anima"}, (WORDS, 1024), extra={"t5xxl_ids": (WORDS,), "t5xxl_weights": (WORDS,)}
    ),
    "PixArt Sigma": Family("PixArtSigma", PIXART, (WORDS, 4096), side=512),
    "OmniGen2": Family("Omnigen2", OMNIGEN, (WORDS, 2048), extra={"attention_mask": (WORDS,)}),
    "Boogu": Family("Boogu", BOOGU, (WORDS, 4096), extra={"attention_mask": (WORDS,)}),
    "Kandinsky 5": Family("Kandinsky5", KANDINSKY, (WORDS, 3584), 768),
    "Kandinsky 5 Image": Family(
        "Kandinsky5Image", KANDINSKY | {"visual_embed_dim": 64, "rope_scale_factor": (1.0, 1.0, 1.0)}, (WORDS, 3584), 768
    ),
    "CogVideoX": Family("CogVideoX_T2V", COGVIDEO, (WORDS, 4096)),
    "Krea 2": Family("Krea2", KREA2, (WORDS, 128)),
    "Ideogram 4": Family("Ideogram4", IDEOGRAM, (WORDS, 512), side=128),
    "Mage-Flow": Family(
        "MageFlow",
        {"image_model": "mage_flow", "num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 256},
        (WORDS, 256),
        side=128,
    ),
    "Lens": Family("Lens", LENS, (WORDS, 128), side=128),
    "JoyImage": Family(
        "JoyImage",
        {"image_model": "joyimage", "hidden_size": 128, "num_attention_heads": 1, "num_layers": 2, "text_dim": 256},
        (WORDS, 256),
    ),
    "Ernie-Image": Family(
        "ErnieImage",
        {
            "image_model": "ernie",
            "hidden_size": 128,
            "num_attention_heads": 1,
            "num_layers": 2,
            "ffn_hidden_size": 256,
            "text_in_dim": 256,
        },
        (WORDS, 256),
        side=128,
    ),
    "PixelDiT": Family("PixelDiTT2I", PIXELDIT, (WORDS, 2304)),
    "HunyuanDiT": Family(
        "HunyuanDiT",
        {"image_model": "hydit", "hidden_size": 128, "depth": 2, "num_heads": 2, "input_size": 8},
        (77, 1024),
        extra={"conditioning_mt5xl": (256, 2048), "attention_mask": (77,), "attention_mask_mt5xl": (256,)},
    ),
}


def build(name: str) -> Any:
    """(patcher, clip, vae) as loader nodes would give them; call inside inference mode."""
    family = FAMILIES[name]
    config = getattr(comfy.supported_models, family.host_class)(dict(family.config))
    config.unet_config.update(family.config)  # some classes put the real size over what they are given
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device="cpu")
    _randomise(model.diffusion_model)
    if family.quantised:
        weights = _quantised(model.diffusion_model, family.quantised)
        config.quant_config = {"mixed_ops": True}
        config.set_inference_dtype(torch.float32, torch.float32)
        model = config.get_model({}, device="cpu")
        model.load_model_weights(weights)
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    return patcher, RandomText(family), RandomVAE(model.latent_format)


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Gives every weight a value, none of them zero, so that activations stay of order one and each layer matters."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if "norm" in name and parameter.ndim < 2 and not name.endswith("bias"):
            parameter.fill_(1)
        elif parameter.ndim < 2:
            parameter.normal_(0, 0.02, generator=generator)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    for name, buffer in module.named_buffers():
        if name.endswith("pos_embed"):
            buffer.normal_(0, 1, generator=generator)


def _quantised(module: nn.Module, kind: str) -> dict[str, Tensor]:
    """A state dict as files have it whose blocks lie in one of the host's formats."""
    weights, layout = module.state_dict(), comfy.quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"]
    how = {"convrot_groupsize": 64} if "w4" in kind else {"scale": "recalculate"}
    for name, layer in choose_layers(module, "attention and mlp", "").items():
        packed = comfy.quant_ops.QuantizedTensor.from_float(layer.weight.data, layout, **how)
        del weights[f"{name}.weight"]
        weights |= packed.state_dict(f"{name}.weight")
        weights[f"{name}.comfy_quant"] = torch.tensor(list(json.dumps({"format": kind} | how).encode()), dtype=torch.uint8)
    return weights


def _random(text: str, shape: tuple[int, ...]) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(f"{text} {shape}".encode()).digest()[:4], "little")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class RandomText:
    """A text encoder: each caption is a fixed random tensor of the family's shape."""

    def __init__(self, family: Family):
        self.family = family

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[Any]:
        extra: dict[str, Any] = {"pooled_output": _random(text, (1, self.family.pooled)) if self.family.pooled else None}
        for name, shape in self.family.extra.items():
            if name.startswith("t5xxl"):  # token ids and their weights, without a batch
                extra[name] = (_random(text + name, shape) * 100).long().abs() if name == "t5xxl_ids" else torch.ones(shape)
            else:
                extra[name] = torch.ones(1, *shape).long() if "mask" in name else _random(text + name, (1, *shape))
        return [[_random(text, (1, *self.family.text)), extra]]


class RandomVAE:
    """Patches as large as the format's, projected to as many channels by a fixed random matrix."""

    def __init__(self, latent_format: Any):
        self.format = latent_format
        self.patch = latent_format.spacial_downscale_ratio
        width = 3 * self.patch**2
        self.matrix = torch.randn(latent_format.latent_channels, width, generator=torch.Generator().manual_seed(0))
        self.matrix /= math.sqrt(width)

    def encode(self, pixels: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(pixels.movedim(-1, 1) * 2 - 1, self.patch)
        latents = torch.einsum("kc,bchw->bkhw", self.matrix, patches) * 1.5
        return self.format.process_out(latents[:, :, None] if self.format.latent_dimensions == 3 else latents)

    def decode(self, latents: Tensor) -> Tensor:
        latents = self.format.process_in(latents)
        latents = latents[:, :, 0] if latents.ndim == 5 else latents
        patches = torch.einsum("ck,bkhw->bchw", torch.linalg.pinv(self.matrix), latents / 1.5)
        return ((F.pixel_shuffle(patches, self.patch) + 1) / 2).clamp(0, 1).movedim(1, -1)
