"""A real but tiny torch model, its Denoiser, and the teaching.Model around it: what the tests of the core train."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from seqlora.diffusion.batches import Examples
from seqlora.diffusion.denoiser import expand, flow_noise, flow_weight, stratified
from seqlora.diffusion.model import NO_TRIGGERS
from seqlora.io.safetensors_file import write_tensors
from seqlora.io.text import split_at_words
from seqlora.library.store import Library
from seqlora.library.writer import MANIFEST
from seqlora.lora.targets import choose_layers, layer_shapes, linear_layers
from seqlora.lora.types import Triggers, Vectors
from seqlora.settings import Settings
from seqlora.training.progress import run_to_end
from seqlora.training.request import TrainingRequest
from seqlora.training.train import train_steps

WIDTH = 32
TOKENS = 16
QUICK = Settings(steps=12, batch_size=8, learning_rate=1e-2, basis_learning_rate=3e-3)


class SmallNet(nn.Module):
    """Two blocks: q and k read one tensor, the others one each; all have biases."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attn_q": nn.Linear(width, width),
                    "attn_k": nn.Linear(width, width),
                    "mlp_in": nn.Linear(width, 2 * width),
                    "mlp_out": nn.Linear(2 * width, width),
                }
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block["attn_q"](x)) * block["attn_k"](x)
            x = x + block["mlp_out"](torch.relu(block["mlp_in"](x)))
        return x


class SmallDenoiser:
    """A flow denoiser on latents (TOKENS, width); a conditioning is a vector (width,)."""

    device = torch.device("cpu")
    writes_in_place = False

    def __init__(self, width: int = WIDTH, dtype: torch.dtype = torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = SmallNet(width).to(dtype).requires_grad_(False)
        self.dtype = dtype

    def sample_sigmas(self, n: int, generator: torch.Generator) -> Tensor:
        return stratified(n, generator) * 0.98 + 0.01

    def sigmas(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1)

    add_noise = staticmethod(flow_noise)
    loss_weight = staticmethod(flow_weight)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        seen = (x + torch.stack(list(cond))[:, None]).to(self.dtype)
        return x - expand(sigma, x) * self.net(seen).float()


class Exploding(SmallDenoiser):
    """Puts out what is no number from the third training step on."""

    passes = 0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        found = super().__call__(x, sigma, cond)
        self.passes += torch.is_grad_enabled() and len(x) == QUICK.batch_size  # measuring takes them one by one
        return found * math.nan if self.passes > 2 else found


class SmallModel:
    """What a host gives to teaching.teach."""

    layout = {"family": "other"}
    parts: dict[str, str] = {}
    remark = ""
    family = "other"
    text_encoders: Sequence[str] = ()
    generic_captions = ("a dog", "a cat", "a house", "a tree")

    def __init__(self, width: int = WIDTH):
        self.denoiser = SmallDenoiser(width)
        self.fingerprint = f"small {width}"

    def layers(self, targets: str) -> dict[str, nn.Module]:
        return choose_layers(self.denoiser.net, targets)

    def linear_layers(self) -> dict[str, nn.Module]:
        return linear_layers(self.denoiser.net)

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        width = self.denoiser.net.blocks[0]["attn_q"].in_features
        return [nn.functional.adaptive_avg_pool2d(p.permute(2, 0, 1), (TOKENS, width)).mean(0) * 2 - 1 for p in pictures]

    def encode_captions(self, captions: Sequence[str], triggers: Triggers = NO_TRIGGERS) -> list[Any]:
        return [self.vector_of(caption) for caption in captions]

    def pieces(self, word: str) -> int:
        return 0

    def own_vectors(self, word: str, count: int) -> Vectors:
        raise NotImplementedError("it takes none")

    def vector_of(self, text: str) -> Tensor:
        width = self.denoiser.net.blocks[0]["attn_q"].in_features
        return torch.randn(width, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


class ReadingModel(SmallModel):
    """Takes a caption as the mean of its words, so that a trigger can have vectors of its own."""

    text_encoders = ("small",)

    def encode_captions(self, captions: Sequence[str], triggers: Triggers = NO_TRIGGERS) -> list[Any]:
        encoded = []
        for caption in captions:
            words: list[Tensor] = []
            for before, trigger in split_at_words(caption, triggers):
                words += [self.vector_of(word) for word in before.split()]
                words += [10 * own for own in triggers[trigger]["small"]] if trigger else []
            encoded.append(torch.stack(words).mean(0) if words else self.vector_of(""))
        return encoded

    def own_vectors(self, word: str, count: int) -> Vectors:
        return {"small": torch.stack([self.vector_of(word) / 10] * count)}


def small_layers(denoiser: SmallDenoiser) -> dict[str, nn.Module]:
    return choose_layers(denoiser.net, "attention and mlp")


def small_ranks(denoiser: SmallDenoiser, rank: int = 2) -> dict[str, int]:
    return dict.fromkeys(layer_shapes(small_layers(denoiser)), rank)


def small_examples(seed: int, width: int = WIDTH) -> Examples:
    """Four pictures of one subject: one vector, seen everywhere, plus a little noise."""
    generator = torch.Generator().manual_seed(seed)
    subject, cond = torch.randn(2, width, generator=generator)
    return Examples([0.1 * torch.randn(TOKENS, width, generator=generator) + subject for _ in range(4)], [cond] * 4)


def small_pictures(seed: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(24, 24, 3, generator=generator) for _ in range(count)]


def small_request(name: str, seed: int = 0, **changes: Any) -> TrainingRequest:
    """Each name has a trigger of its own, in letters."""
    trigger = "zyx" + "".join(character for character in name if character.isalpha())
    request = {"name": name, "trigger": trigger, "class_word": "thing", "pictures": small_pictures(seed)}
    return TrainingRequest(**{**request, **changes})


def small_library(path: Path, model: SmallModel) -> Library:
    """Two taught concepts, cat and dog, of rank 8, one more than planned."""
    return _teach_all(Library.create(path, rank=8, capacity=1, targets="attention and mlp"), ("cat", "dog"), model)


def full_library(path: Path, model: SmallModel) -> Library:
    """The same with two more, elk and fox: the layers of width 32 are full."""
    return _teach_all(small_library(path, model), ("elk", "fox"), model)


def _teach_all(library: Library, names: Sequence[str], model: SmallModel) -> Library:
    for name in names:
        library = run_to_end(train_steps(library, small_request(name, len(library.names)), QUICK, model)).library
    return library


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but its lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rewrite(library: Library, name: str, change: Callable[[dict[str, Tensor]], Any]) -> Library:
    """Changes a concept's tensors in its file and makes the manifest agree, as a hand that knows the format would."""
    record = library.find(name)
    tensors = load_file(library.path / record.file)
    change(tensors)
    sha256 = write_tensors(library.path / record.file, tensors)
    return relist(library, name, sha256=sha256)


def relist(library: Library, name: str, **changes: Any) -> Library:
    """Changes a concept's entry in the manifest."""
    manifest = json.loads((library.path / MANIFEST).read_text())
    manifest["concepts"][library.names.index(name)].update(changes)
    (library.path / MANIFEST).write_text(json.dumps(manifest))
    return Library.open(library.path)
