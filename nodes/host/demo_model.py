"""The demo model as ComfyUI's own objects: a BaseModel with a UNetModel, a CLIP and a VAE.

Beside host.py the only module that touches private host interfaces. Everything stays fp32: the model is too small to gain
from less.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...seqlora.demo import micro
from ...seqlora.errors import SeqLoRAError
from ...seqlora.lora.layouts import unet_state_dict_to_native


def load_demo_model(path: Path = micro.WEIGHTS) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of the demo model."""
    if not path.is_file():
        raise SeqLoRAError(f"The demo model's weights are missing at {path}", "install the SeqLoRA node pack again")
    parts, tokenizer = micro.read_weights(path)
    text, autoencoder = micro.load_text_and_vae(parts, tokenizer)
    return _load_unet(path), _load_clip(path, text, tokenizer), DemoVAE(autoencoder)


# --- UNet ---------------------------------------------------------------------------------------------------------------


class _Width(int):
    """A block width in channels where the host expects a factor: it multiplies by whole numbers, and 96 -> 128 is none."""

    def __mul__(self, model_channels: int) -> int:
        return int(self)

    __rmul__ = __mul__


class DemoLatent(comfy.latent_formats.LatentFormat):
    latent_channels = micro.LATENT_CHANNELS
    spacial_downscale_ratio = micro.PATCH  # lets the host turn its empty latents, made for a ratio of 8, into ours


class DemoBase(comfy.model_base.BaseModel):
    def encode_adm(self, **kwargs: Any) -> Tensor:
        return kwargs["cross_attn"].mean(1)  # see micro.velocity()


class DemoConfig(comfy.supported_models_base.BASE):
    unet_config = {
        "image_size": micro.UNET_CONFIG["sample_size"],
        "in_channels": micro.LATENT_CHANNELS,
        "out_channels": micro.LATENT_CHANNELS,
        "model_channels": micro.UNET_CONFIG["block_out_channels"][0],
        "channel_mult": tuple(_Width(width) for width in micro.UNET_CONFIG["block_out_channels"]),
        "num_res_blocks": [1, 1],
        "transformer_depth": [0, 1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [0, 0, 1, 1],
        "context_dim": micro.CONTEXT_DIM,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "legacy": False,
        "num_classes": "sequential",
        "adm_in_channels": micro.CONTEXT_DIM,
    }
    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    sampling_settings = {"shift": 1.0}
    latent_format = DemoLatent
    supported_inference_dtypes = [torch.float32]
    memory_usage_factor = 0.5

    def get_model(self, state_dict: dict, prefix: str = "", device: torch.device | None = None) -> DemoBase:
        return DemoBase(self, model_type=comfy.model_base.ModelType.FLOW, device=device)


def _load_unet(path: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    parts, _ = micro.read_weights(path)
    config = DemoConfig(DemoConfig.unet_config)
    config.set_inference_dtype(torch.float32, None)
    # What a latent looks like before decoding: the mean colour of each patch. Gives the sampler its previews.
    colours = parts["vae"]["components"].unflatten(1, (3, -1)).mean(-1) * parts["vae"]["scale"][:, None]
    config.latent_format.latent_rgb_factors = colours.tolist()
    config.latent_format.latent_rgb_factors_bias = parts["vae"]["mean"].unflatten(0, (3, -1)).mean(-1).tolist()

    weights = unet_state_dict_to_native(parts["unet"], micro.UNET_CONFIG)
    model = config.get_model(weights)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    model.to(patcher.offload_device)
    model.load_model_weights(weights, assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (_load_unet, (path,))  # how the host makes a copy that owns its weights
    return patcher


# --- Text encoder -------------------------------------------------------------------------------------------------------


class DemoTokenizer:
    """The demo model's tokenizer as the host wants it: `text` -> {"micro": [[(word id, weight), ...]]}."""

    def __init__(self, tokenizer: micro.Tokenizer):
        def ids(text: str) -> dict[str, list[Any]]:
            return {"input_ids": [tokenizer.word_id(word) for word in tokenizer.split(text)]}

        # As the host's own hold theirs, one for each text encoder.
        self.micro = SimpleNamespace(tokenizer=ids, tokens_start=0, tokenizer_adds_end_token=False)

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, list]:
        words = []
        for part, weight in comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0):
            part = comfy.sd1_clip.unescape_important(part)
            words += [(word, weight) for word in self.micro.tokenizer(part)["input_ids"]]
        tokens = [(word, weight, i + 1) for i, (word, weight) in enumerate(words)][: micro.MAX_WORDS]
        tokens += [(0, 1.0, 0)] * (micro.MAX_WORDS - len(tokens))
        return {"micro": [tokens if return_word_ids else [token[:2] for token in tokens]]}

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class DemoTextModel(nn.Module, comfy.sd1_clip.ClipTokenWeightEncoder):
    """The demo model's text encoder; the host's mix-in weights words against the empty prompt, as in its own encoders."""

    dtypes = {torch.float32}
    disable_offload = True  # plain torch modules cannot be moved in parts
    special_tokens = {"pad": 0}

    def __init__(self, text: micro.TextEncoder):
        super().__init__()
        self.text = text

    @property
    def micro(self) -> DemoTextModel:
        """The host's own models hold their encoders under such names."""
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text.embedding

    def gen_empty_tokens(self, special_tokens: dict[str, int], length: int) -> list[int]:
        return [special_tokens["pad"]] * length

    def encode(self, tokens: list[list[Any]]) -> tuple[Tensor, None]:
        return self.text(*self._read(tokens)), None

    def process_tokens(self, tokens: list[list[Any]], device: torch.device) -> tuple[Tensor]:
        return (self.text.embed(*self._read(tokens)),)

    def _read(self, tokens: list[list[Any]]) -> tuple[Tensor, list[tuple[int, int, Tensor]]]:
        """Ids, and the vectors that stand in their places, as `TextEncoder` takes them."""
        ids = [[0 if isinstance(word, Tensor) else word for word in words] for words in tokens]
        placed = ((row, place, word) for row, words in enumerate(tokens) for place, word in enumerate(words))
        own = [found for found in placed if isinstance(found[2], Tensor)]
        return torch.tensor(ids, device=self.text.position.device), own

    def encode_token_weights(self, token_weight_pairs: dict[str, list]) -> tuple[Tensor, None]:
        return super().encode_token_weights(token_weight_pairs["micro"])

    def set_clip_options(self, options: dict) -> None:
        """There is one layer to read and no pooled output: nothing to choose."""

    def reset_clip_options(self) -> None:
        pass

    def load_sd(self, state_dict: dict[str, Tensor]) -> Any:
        return self.load_state_dict(state_dict, strict=False)


def _load_clip(path: Path, text: micro.TextEncoder, tokenizer: micro.Tokenizer) -> comfy.sd.CLIP:
    target = SimpleNamespace(
        params={},
        clip=lambda dtype, device, model_options: DemoTextModel(text).to(device),
        tokenizer=lambda embedding_directory, tokenizer_data: DemoTokenizer(tokenizer),
    )
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    clip.patcher.cached_patcher_init = (_load_clip_patcher, (path,))
    return clip


def _load_clip_patcher(path: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    parts, tokenizer = micro.read_weights(path)
    text, _ = micro.load_text_and_vae(parts, tokenizer)
    return _load_clip(path, text, tokenizer).patcher


# --- Autoencoder --------------------------------------------------------------------------------------------------------


class DemoVAE(comfy.sd.VAE):
    """The demo model's linear autoencoder behind the host's VAE, which does batching, cropping and tiling."""

    def __init__(self, autoencoder: micro.PatchAutoencoder):
        with _no_warning():  # an empty state dict sets every default and, rightly, finds no weights
            super().__init__(sd={})
        self.downscale_ratio = self.upscale_ratio = micro.PATCH
        self.latent_channels = micro.LATENT_CHANNELS
        self.memory_used_encode = lambda shape, dtype: 64 * shape[2] * shape[3] * 4
        self.memory_used_decode = lambda shape, dtype: 64 * shape[2] * shape[3] * micro.PATCH**2 * 4
        self.disable_offload = True  # plain torch modules cannot be moved in parts
        self.working_dtypes = [torch.float32]
        self.vae_dtype = torch.float32
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.first_stage_model = autoencoder
        comfy.model_management.archive_model_dtypes(autoencoder)
        self.patcher = comfy.model_patcher.ModelPatcher(
            autoencoder, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )
        self.model_size()


@contextmanager
def _no_warning() -> Iterator[None]:
    def not_a_warning(record: logging.LogRecord) -> bool:
        return record.levelno != logging.WARNING

    root = logging.getLogger()
    root.addFilter(not_a_warning)
    try:
        yield
    finally:
        root.removeFilter(not_a_warning)
