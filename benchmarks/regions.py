"""What regions cost while sampling, and whether they keep concepts in their places. Runs in ComfyUI's interpreter.

    python benchmarks/regions.py cost ROUNDS
        ratios to the bare model, on a UNet and on a Flux of moderate width
    python benchmarks/regions.py places LIBRARY COUNT NAME NAME ...
        pictures with two of a demo library's concepts in two boxes, judged by the demo's classifier

They print JSON; what stands beside a model's name is a ratio of medians of one run, in which all ways take turns.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfyui" / "hostscripts"))

import boot
import comfy.model_base
import comfy.sample
import torch
import zoo
from seqlora_pack.nodes.host.apply import _by_module, _targets, apply_adapter
from seqlora_pack.nodes.host.demo_model import load_demo_model
from seqlora_pack.nodes.host.forward import run_beside
from seqlora_pack.nodes.host.regions import Regions, encode_words, join_texts, lengthened
from seqlora_pack.seqlora.demo.classifier import recognise
from seqlora_pack.seqlora.demo.pictures import all_emoji
from seqlora_pack.seqlora.library.store import Library
from seqlora_pack.seqlora.lora.compose import compose, owners
from seqlora_pack.seqlora.lora.ranks import layer_rank
from seqlora_pack.seqlora.lora.targets import choose_layers, layer_shapes
from seqlora_pack.seqlora.lora.types import LoRAPair
from seqlora_pack.seqlora.prompt.regions import RegionPlan, box_mask
from torch import Tensor

BOXES = [(x + 0.03, y + 0.03, 0.44, 0.44) for x in (0, 0.5) for y in (0, 0.5)]
RANK, CAPACITY = 16, 32
# Name -> (family of the zoo, what is wider than there, tokens of the prompt and of a region, latents' height and width)
MODELS: dict[str, tuple[str, Mapping[str, Any], int, int, int]] = {
    "UNet": ("SD 1.5", {"model_channels": 320, "num_head_channels": 40}, 77, 77, 32),
    "Flux": ("Flux.1 dev", {"hidden_size": 1024, "num_heads": 8, "depth": 1, "depth_single_blocks": 2}, 128, 10, 48),
}
SIDE, MARGIN = 64, 0.06  # of a half of the demo's picture, in pixels; of a half's box, as a share of the picture


def concept(model: Any, seed: int) -> dict[str, LoRAPair]:
    generator, pairs = torch.Generator().manual_seed(seed), {}
    for name, (m, n) in layer_shapes(choose_layers(model.diffusion_model, "attention and mlp")).items():
        rank = layer_rank(n, RANK, CAPACITY)
        basis = torch.linalg.qr(torch.randn(n, rank, generator=generator))[0]
        pairs[name] = LoRAPair(torch.randn(m, rank, generator=generator) * 0.1 * (n / m) ** 0.5, basis)
    return pairs


def cost(name: str, rounds: int) -> dict[str, float]:
    family, wider, words, more, side = MODELS[name]
    kind = zoo.FAMILIES[family]
    zoo.FAMILIES[name] = zoo.Family(kind.host_class, {**kind.config, **wider}, (words, kind.text[1]), kind.pooled)
    patcher, clip, _ = zoo.build(name)
    concepts = [concept(patcher.model, seed) for seed in range(len(BOXES))]
    composed = compose([(one, 1.0) for one in concepts])
    prompt, negative = (clip.encode_from_tokens_scheduled(text) for text in ("a photo", "ugly"))
    texts = [[[prompt[0][0][:, :more] * (i + 1), {}]] for i in range(len(BOXES))]
    joined, lengths = join_texts(prompt, texts)
    plan = RegionPlan([box_mask(*box) for box in BOXES], lengths, [(i,) for i in range(len(BOXES))])
    placed = apply_adapter(patcher, composed, 1.0, Regions(plan, owners(concepts)))
    beside = run_beside(patcher, _by_module(list(_targets(patcher.model, composed)), 1.0))
    ways = {
        "bare": (patcher, prompt, negative),
        "patched": (apply_adapter(patcher, composed, 1.0), prompt, negative),
        "beside": (beside, prompt, negative),
        "four regions": (placed, joined, lengthened(negative, sum(lengths))),
    }
    latent = torch.zeros(1, patcher.model.latent_format.latent_channels, side, side)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):  # the first one warms up
        for way, (model, positive, against) in ways.items():
            marks: list[float] = []
            comfy.sample.sample(
                model, noise, 3, 3.0, "euler", "simple", positive, against, latent, disable_pbar=True, seed=0,
                callback=lambda *args, marks=marks: marks.append(time.process_time()),
            )  # fmt: skip
            if turn:  # between steps: loading and patching come before the first
                seconds[way] += [later - sooner for sooner, later in itertools.pairwise(marks)]
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    return {"bare, seconds a step": medians["bare"]} | {
        way: round(medians[way] / medians["bare"], 3) for way in ways if way != "bare"
    }


def places(path: Path, count: int, names: list[str]) -> dict[str, Any]:
    """Every two of these concepts, in both orders, `count` pictures each: a picture of two halves, a box in each."""
    library, index = Library.open(path), {emoji.name: i for i, emoji in enumerate(all_emoji())}
    chosen = [library.find(name) for name in names]
    found: dict[str, dict[str, Any]] = {}
    for one, two in itertools.permutations(chosen, 2):
        halves = drawn(library, one, two, count)
        wanted = torch.tensor([index[one.name], index[two.name]])
        found[f"{one.name}, {two.name}"] = {
            "both": float((halves == wanted).all(1).float().mean()),
            "each": (halves == wanted).float().mean(0).tolist(),
            "swapped": float((halves == wanted.flip(0)).any(1).float().mean()),
        }
    figures = list(found.values())
    return {
        "pictures": count * len(found),
        "both": round(statistics.mean(pair["both"] for pair in figures), 3),
        "swapped": round(statistics.mean(pair["swapped"] for pair in figures), 3),
        "alone": {record.name: alone(library, record, count) for record in chosen},
        "pairs": found,
    }


def drawn(library: Library, one: Any, two: Any, count: int) -> Tensor:
    """What the classifier sees in both halves, (count, 2)."""
    model, clip, vae = load_demo_model()
    concepts = [library.load(record.name) for record in (one, two)]
    texts = [encode_words(clip, f"a photo of {record.subject}") for record in (one, two)]
    joined, lengths = join_texts(encode_words(clip, ""), texts)
    boxes = [box_mask(left + MARGIN, MARGIN, 0.5 - 2 * MARGIN, 1 - 2 * MARGIN) for left in (0, 0.5)]
    regions = Regions(RegionPlan(boxes, lengths, [(0,), (1,)]), owners(concepts))
    placed = apply_adapter(model, compose([(concept, 1.0) for concept in concepts]), 1.0, regions)
    pictures = sample(placed, joined, lengthened(encode_words(clip, ""), sum(lengths)), vae, count, 2)
    return torch.stack([recognise(half) for half in (pictures[..., :SIDE], pictures[..., SIDE:])], 1)


def alone(library: Library, record: Any, count: int) -> float:
    """How often a concept is recognised in an ordinary picture of its own: what regions could reach at most."""
    model, clip, vae = load_demo_model()
    applied = apply_adapter(model, library.load(record.name), 1.0)
    pictures = sample(applied, encode_words(clip, f"a photo of {record.subject}"), encode_words(clip, ""), vae, count, 1)
    wanted = [emoji.name for emoji in all_emoji()].index(record.name)
    return float((recognise(pictures) == wanted).float().mean())


def sample(model: Any, positive: Any, negative: Any, vae: Any, count: int, halves: int) -> Tensor:
    latent = torch.zeros(count, 16, 16, 16 * halves)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    drawn = comfy.sample.sample(model, noise, 20, 3.0, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=0)
    return vae.decode(drawn).movedim(-1, 1) * 2 - 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.inference_mode():
        if sys.argv[1] == "cost":
            for name in MODELS:
                boot.report(**{name: cost(name, int(sys.argv[2]))})
        else:
            boot.report(**places(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
