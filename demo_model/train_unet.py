"""Train the demo model on rendered emoji; resumes from --out on its own.

    python demo_model/render_emoji.py --ship && python demo_model/train_unet.py && python demo_model/train_unet.py --ship

A step of batch 32 takes about 0.45 s on one CPU core with bf16 matrix units. `--ship` writes
`seqlora/demo/micro.safetensors` from the average of the weights.
"""

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from seqlora.demo import micro
from seqlora.demo.pictures import BACKGROUNDS, all_emoji, background_colours, glyph_tensor, jitter, paint, place

CLASS_WORDS = ["animal", "food", "plant", "face", "vehicle", "place", "object"]
TEMPLATES = ["{}", "a photo of {}", "a picture of {}", "an emoji of {}"]


def vocabulary() -> list[str]:
    text = " ".join(e.name for e in all_emoji() if not e.held_out)
    text += " a photo picture of an emoji and on background the with " + " ".join([*BACKGROUNDS, *CLASS_WORDS])
    return sorted(set(micro.Tokenizer.split(text)))


class Pictures:
    """Endless batches of emoji pictures with captions: mostly one emoji, one in eight shows two side by side."""

    def __init__(self, glyph_file: Path, seed: int):
        self.emoji = [e for e in all_emoji() if not e.held_out]
        self.glyphs = glyph_tensor(np.load(glyph_file))[: len(self.emoji)]
        self.by_class = {w: [i for i, e in enumerate(self.emoji) if e.class_word == w] for w in CLASS_WORDS}
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, size: int) -> tuple[torch.Tensor, list[str]]:
        rng, count = self.rng, len(self.emoji)
        first = [rng.randrange(count) for _ in range(size)]
        second = [rng.randrange(count) for _ in range(size)]
        pair = torch.tensor([rng.random() < 1 / 8 for _ in range(size)])
        backgrounds, captions = [], []
        for i in range(size):
            name = self.emoji[first[i]].name
            if pair[i]:
                name = f"{name} and {self.emoji[second[i]].name}"
            elif rng.random() < 0.08:
                word = rng.choice(CLASS_WORDS)
                first[i] = rng.choice(self.by_class[word])
                name = word
            elif rng.random() < 0.25:
                name = f"{name} {self.emoji[first[i]].class_word}"
            caption = rng.choice(TEMPLATES).format(name)
            background = rng.choice(list(BACKGROUNDS))
            if rng.random() < 0.5:
                caption += f" on a {background} background"
            elif rng.random() < 0.7:
                background = "white"
            backgrounds.append(background)
            captions.append("" if rng.random() < 0.1 else caption)
        scale, angle, shift = jitter(size, self.generator)
        half, side = pair * 0.5, torch.tensor([0.5, 0.0])
        left = place(self.glyphs[first], scale * (1 - half * 0.92), angle, shift * (1 - half[:, None]) - pair[:, None] * side)
        scale, angle, shift = jitter(size, self.generator)
        right = place(self.glyphs[second], scale * 0.54, angle, shift * 0.5 + side) * pair[:, None, None, None]
        return paint([left, right], background_colours(backgrounds)), captions


def fit_autoencoder(vae: micro.PatchAutoencoder, images: torch.Tensor) -> None:
    patches = torch.nn.functional.pixel_unshuffle(images, micro.PATCH).flatten(2).transpose(1, 2).flatten(0, 1)
    vae.mean.copy_(patches.mean(0))
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    values, vectors = values.flip(0)[: micro.LATENT_CHANNELS], vectors.flip(1)[:, : micro.LATENT_CHANNELS]
    vae.components.copy_(vectors.T)
    # Half-way to whitening keeps the order of importance; then unit variance over all channels.
    scale = values.pow(0.25)
    vae.scale.copy_(scale * (values / scale**2).mean().sqrt())


def build(seed: int, glyph_file: Path) -> micro.MicroModel:
    torch.manual_seed(seed)
    words = vocabulary()
    vae = micro.PatchAutoencoder()
    fit_autoencoder(vae, Pictures(glyph_file, seed + 1).batch(2000)[0])
    unet = UNet2DConditionModel(**micro.UNET_CONFIG)
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.class_embedding.linear_2.weight)
    return micro.MicroModel(unet, micro.TextEncoder(len(words)), vae, micro.Tokenizer(words))


def learning_rate(step: int, steps: int, peak: float) -> float:
    return peak * min(1, step / 200) * min(1, (steps - step) / (0.35 * steps))


def train(args: argparse.Namespace) -> None:
    model = build(0, args.glyphs)
    model.unet.train(), model.text.train()
    sketch = torch.nn.Linear(micro.CONTEXT_DIM, micro.LATENT_CHANNELS * 8 * 8)  # of no use after training
    weights = [*model.unet.parameters(), *model.text.parameters()]
    average = copy.deepcopy((model.unet, model.text))
    averaged = [w.requires_grad_(False) for part in average for w in part.parameters()]
    optimizer = torch.optim.AdamW([*weights, *sketch.parameters()], args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    start, checkpoint = 0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.unet.load_state_dict(state["unet"]), model.text.load_state_dict(state["text"])
        average[0].load_state_dict(state["unet_ema"]), average[1].load_state_dict(state["text_ema"])
        optimizer.load_state_dict(state["optimizer"])
        sketch.load_state_dict(state["sketch"])
        start = state["step"]
    pictures = Pictures(args.glyphs, 1000 + start)
    clock, losses = time.time(), []
    for step in range(start, args.steps):
        images, captions = pictures.batch(args.batch)
        latents = model.vae.encode(images)
        sigma = torch.sigmoid(torch.randn(args.batch) * 1.2 + 0.5)[:, None, None, None]
        noise = torch.randn_like(latents)
        # The fused CPU attention is slow to differentiate in bf16; plain matrix products are not.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            context = model.encode_text(captions)
            velocity = micro.velocity(model.unet, (1 - sigma) * latents + sigma * noise, sigma.flatten() * 1000, context)
            guess = sketch(context.mean(1))
        loss = (velocity.float() - (noise - latents)).pow(2).mean()
        # The text encoder has nothing but captions to learn from: ask it what the picture looks like from afar.
        afar = torch.nn.functional.avg_pool2d(latents, 2).flatten(1)
        total = loss + 0.3 * (guess.float() - afar).pow(2).mean()
        optimizer.param_groups[0]["lr"] = learning_rate(step + 1, args.steps, args.lr)
        total.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.9995, 1 - 1 / (1 + step / 8))
        torch._foreach_lerp_(averaged, [w.detach() for w in weights], 1 - decay)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(
                f"{step + 1} loss {sum(losses) / len(losses):.4f} {(time.time() - clock) / len(losses):.3f} s/step", flush=True
            )
            clock, losses = time.time(), []
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            state = {"unet": model.unet.state_dict(), "text": model.text.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"unet_ema": average[0].state_dict(), "text_ema": average[1].state_dict(), "sketch": sketch.state_dict()}
            state["step"] = step + 1
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            export(model, average, args.out / "micro.safetensors")
    assert math.isfinite(loss.item())


def export(model: micro.MicroModel, average: tuple, path: Path) -> None:
    tensors = {f"unet.{k}": v.half() for k, v in average[0].state_dict().items()}
    tensors |= {f"text.{k}": v.half() for k, v in average[1].state_dict().items()}
    tensors |= {f"vae.{k}": v.clone() for k, v in model.vae.state_dict().items()}
    save_file(tensors, path, {"words": json.dumps(model.tokenizer.words)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/micro"))
    parser.add_argument("--glyphs", type=Path, default=Path("build/emoji/glyphs.npy"))
    parser.add_argument("--steps", type=int, default=11000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ship", action="store_true", help="copy the trained weights to where the software reads them")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.ship:
        micro.WEIGHTS.write_bytes((args.out / "micro.safetensors").read_bytes())
    else:
        train(args)


if __name__ == "__main__":
    main()
