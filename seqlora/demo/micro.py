"""The demo model: a small flow-matching UNet over linear latents, with a word-level text encoder.

The UNet has the layout that diffusers calls `UNet2DConditionModel` and ComfyUI calls `UNetModel`, so the same weights run in
both. Text encoder and autoencoder are plain torch modules that both hosts share.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..io.text import split_at_words
from ..lora.types import Triggers

HERE = Path(__file__).parent
WEIGHTS = HERE / "micro.safetensors"
IMAGE_SIZE = 64
PATCH = 4
LATENT_CHANNELS = 16
CONTEXT_DIM = 128
MAX_WORDS = 20
ENCODER = "micro"  # the text encoder's name where trigger vectors are kept

UNET_CONFIG = {  # diffusers' names
    "sample_size": IMAGE_SIZE // PATCH,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "block_out_channels": (96, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": CONTEXT_DIM,
    "attention_head_dim": (3, 4),  # diffusers means the number of heads; 32 channels each
    "use_linear_projection": True,
    "class_embed_type": "projection",  # takes the mean of the context, see velocity()
    "projection_class_embeddings_input_dim": CONTEXT_DIM,
}


class Tokenizer:
    """Words to ids. A word outside the vocabulary keeps an id of its own, so a made-up trigger always has a meaning."""

    def __init__(self, words: list[str]):
        self.words = words
        self.ids = {word: i + 1 for i, word in enumerate(words)}  # 0 pads

    def word_id(self, word: str) -> int:
        known = self.ids.get(word)
        if known is not None:
            return known
        digest = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        return len(self.words) + 1 + digest

    @staticmethod
    def split(text: str) -> list[str]:
        return re.findall(r"[^\W_]+(?:_[^\W_]+)*", text.lower())

    def __call__(self, text: str) -> list[int]:
        ids = [self.word_id(word) for word in self.split(text)][:MAX_WORDS]
        return ids + [0] * (MAX_WORDS - len(ids))


class TextEncoder(nn.Module):
    """Word embeddings and two transformer layers: ids (batch, MAX_WORDS) -> context (batch, MAX_WORDS, CONTEXT_DIM)."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary + 1, CONTEXT_DIM)
        self.position = nn.Parameter(torch.randn(MAX_WORDS, CONTEXT_DIM) * 0.3)
        layer = nn.TransformerEncoderLayer(
            CONTEXT_DIM, 4, 4 * CONTEXT_DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(CONTEXT_DIM)

    def embed(self, ids: Tensor, own: Sequence[tuple[int, int, Tensor]] = ()) -> Tensor:
        """`own`: vectors in the place of a word's, each with the text and the place that it stands at."""
        known = self.embedding.num_embeddings
        out = self.embedding(ids.clamp(max=known - 1))
        unknown = (ids >= known).nonzero()
        if len(unknown):
            rows = torch.stack([_random_embedding(int(ids[b, w])) for b, w in unknown.tolist()])
            out = out.index_put(tuple(unknown.T), rows.to(out))
        if own:
            places = torch.tensor([place[:2] for place in own], device=out.device)
            out = out.index_put(tuple(places.T), torch.stack([vector for *_, vector in own]).to(out))
        return F.rms_norm(out, (CONTEXT_DIM,))

    def forward(self, ids: Tensor, own: Sequence[tuple[int, int, Tensor]] = ()) -> Tensor:
        return self.norm(self.layers(self.embed(ids, own) + self.position))


def _random_embedding(seed: int) -> Tensor:
    return torch.randn(CONTEXT_DIM, generator=torch.Generator().manual_seed(seed))


class PatchAutoencoder(nn.Module):
    """Principal components of 4 x 4 pixel patches: images (batch, 3, H, W) in -1..1 <-> latents (batch, 16, H/4, W/4)."""

    components: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("components", torch.zeros(LATENT_CHANNELS, 3 * PATCH * PATCH))  # orthonormal rows
        self.register_buffer("mean", torch.zeros(3 * PATCH * PATCH))
        self.register_buffer("scale", torch.ones(LATENT_CHANNELS))

    def encode(self, images: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(images, PATCH) - self.mean[:, None, None]
        return torch.einsum("cp,bphw->bchw", self.components, patches) / self.scale[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        patches = torch.einsum("cp,bchw->bphw", self.components, latents * self.scale[:, None, None])
        return F.pixel_shuffle(patches + self.mean[:, None, None], PATCH).clamp(-1, 1)


def velocity(unet: nn.Module, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    """The UNet reads the context word by word through attention, and its mean beside the timestep."""
    return unet(x, timestep, context, class_labels=context.mean(1)).sample


@dataclass
class MicroModel:
    unet: nn.Module
    text: TextEncoder
    vae: PatchAutoencoder
    tokenizer: Tokenizer

    def encode_text(self, captions: Sequence[str], triggers: Triggers | None = None) -> Tensor:
        """Contexts (captions, MAX_WORDS, CONTEXT_DIM); words of `triggers` are replaced by the vectors for ENCODER."""
        ids, own = torch.zeros(len(captions), MAX_WORDS, dtype=torch.long), []
        for row, caption in enumerate(captions):
            words: list[int | Tensor] = []
            for before, trigger in split_at_words(caption, triggers or ()):
                words += [self.tokenizer.word_id(word) for word in self.tokenizer.split(before)]
                words += list(triggers[trigger][ENCODER]) if triggers and trigger else []
            for place, word in enumerate(words[:MAX_WORDS]):
                if isinstance(word, Tensor):
                    own.append((row, place, word))
                else:
                    ids[row, place] = word
        return self.text(ids.to(self.text.position.device), own)

    def own_vectors(self, word: str, count: int) -> Tensor:
        """The embeddings of a word that has none, as often as asked for: (count, CONTEXT_DIM)."""
        ids = [self.tokenizer.word_id(part) for part in self.tokenizer.split(word)]
        found = self.text.embed(torch.tensor([ids], device=self.text.position.device))[0]
        return found[[i * len(ids) // count for i in range(count)]]


def read_weights(path: Path = WEIGHTS) -> tuple[dict[str, dict[str, Tensor]], Tokenizer]:
    """Weights by part (`unet` in diffusers' key names, `text`, `vae`), in fp32, and the tokenizer."""
    with safe_open(path, framework="pt") as file:
        words = json.loads(file.metadata()["words"])
    parts: dict[str, dict[str, Tensor]] = {"unet": {}, "text": {}, "vae": {}}
    for name, tensor in load_file(path).items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor.float()
    return parts, Tokenizer(words)


def load_text_and_vae(parts: dict[str, dict[str, Tensor]], tokenizer: Tokenizer) -> tuple[TextEncoder, PatchAutoencoder]:
    text, vae = TextEncoder(len(tokenizer.words)), PatchAutoencoder()
    text.load_state_dict(parts["text"])
    vae.load_state_dict(parts["vae"])
    return text.eval().requires_grad_(False), vae.eval().requires_grad_(False)


def load_micro(path: Path = WEIGHTS) -> MicroModel:
    """The demo model for use without ComfyUI, in fp32 and frozen. Needs diffusers."""
    from diffusers import UNet2DConditionModel

    parts, tokenizer = read_weights(path)
    unet = UNet2DConditionModel(**UNET_CONFIG)
    unet.load_state_dict(parts["unet"])
    text, vae = load_text_and_vae(parts, tokenizer)
    return MicroModel(unet.eval().requires_grad_(False), text, vae, tokenizer)
