"""Train the demo's judge on rendered emoji, spoilt in the ways in which generated pictures are spoilt.

    python demo_model/render_emoji.py && python demo_model/train_classifier.py

Writes `seqlora/demo/classifier.safetensors` (fp16) and prints how it does on pictures and on spoilings it has not seen. Takes
six minutes on one CPU core with bf16 matrix units. The autoencoder comes from the demo model's weights, so train (or start to
train) that first.
"""

import argparse
import io
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from seqlora.demo import classifier as judge
from seqlora.demo.micro import IMAGE_SIZE, WEIGHTS, PatchAutoencoder, load_text_and_vae, read_weights
from seqlora.demo.pictures import BACKGROUNDS, all_emoji, background_colours, glyph_tensor, jitter, paint, place


def dct() -> torch.Tensor:
    k = torch.arange(8.0)
    basis = torch.cos(math.pi / 8 * (k + 0.5) * k[:, None]) / 2
    basis[0] /= math.sqrt(2)
    return basis


class Augmentation:
    """Random pictures of given emoji: (b,) indices -> images (b, 3, 64, 64) in -1..1."""

    def __init__(self, glyphs: torch.Tensor, vae: PatchAutoencoder, seed: int):
        self.glyphs, self.vae, self.dct = glyphs, vae, dct()
        self.palette = background_colours(list(BACKGROUNDS))
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator) * (high - low) + low

    def some(self, share: float, images: torch.Tensor) -> torch.Tensor:
        """A random selection of the batch, as indices."""
        return (self.uniform(0, 1, len(images)) < share).nonzero()[:, 0]

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def render(self, index: torch.Tensor) -> torch.Tensor:
        n = len(index)
        angle, shift = self.uniform(-18, 18, n) * (math.pi / 180), self.uniform(-0.18, 0.18, n, 2)
        layer = place(self.glyphs[index], self.uniform(0.6, 1.05, n), angle, shift)
        colour = self.palette[torch.randint(len(self.palette), (n,), generator=self.generator)]
        free = self.some(0.4, index)
        colour[free] = self.uniform(0, 1, len(free), 3)
        return paint([layer], colour)

    def warp(self, images: torch.Tensor) -> torch.Tensor:
        """A smooth displacement of up to a few pixels: generated outlines wobble."""
        bend = F.interpolate(self.normal(len(images), 2, 4, 4) * 0.035, size=IMAGE_SIZE, mode="bicubic", align_corners=False)
        still = F.affine_grid(torch.eye(2, 3).expand(len(images), -1, -1), list(images.shape), align_corners=False)
        return F.grid_sample(images, still + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)

    def recolour(self, images: torch.Tensor) -> torch.Tensor:
        n = len(images)
        gain, grey = self.uniform(0.75, 1.2, n, 1, 1, 1), images.mean(1, keepdim=True)
        images = grey + (images - grey) * self.uniform(0.5, 1.3, n, 1, 1, 1)
        return images * gain + self.uniform(-0.12, 0.12, n, 3, 1, 1)

    def shrink(self, images: torch.Tensor, size: int) -> torch.Tensor:
        small = F.interpolate(images, size=size, mode="area")
        return F.interpolate(small, size=IMAGE_SIZE, mode="bilinear", align_corners=False)

    def quantise(self, images: torch.Tensor) -> torch.Tensor:
        """What JPEG does to its 8 x 8 blocks, with a coarser step for finer detail."""
        blocks = images.unflatten(-1, (8, 8)).unflatten(-3, (8, 8))  # b, 3, row, y, column, x
        fineness = (1 + torch.arange(8.0)[:, None, None] + torch.arange(8.0)) / 4
        step = self.uniform(0.1, 0.5, len(images), 1, 1, 1, 1, 1) * fineness
        waves = torch.einsum("ky,lx,bcrysx->bcrksl", self.dct, self.dct, blocks)
        waves = (waves / step).round() * step
        return torch.einsum("ky,lx,bcrksl->bcrysx", self.dct, self.dct, waves).flatten(-2).flatten(-3, -2)

    def reconstruct(self, images: torch.Tensor, noise: float) -> torch.Tensor:
        latents = self.vae.encode(images)
        return self.vae.decode(latents + self.normal(*latents.shape) * self.uniform(0, noise, len(images), 1, 1, 1))

    def __call__(self, index: torch.Tensor) -> torch.Tensor:
        images = self.render(index)
        for share, spoil in ((0.5, self.warp), (0.6, self.recolour), (0.25, self.quantise)):
            chosen = self.some(share, images)
            images[chosen] = spoil(images[chosen])
        for size in (16, 24, 32, 44):
            chosen = self.some(0.12, images)
            images[chosen] = self.shrink(images[chosen], size)
        chosen = self.some(0.5, images)
        images[chosen] = self.reconstruct(images[chosen], 0.5)
        chosen = self.some(0.4, images)
        images[chosen] += self.normal(*images[chosen].shape) * self.uniform(0, 0.3, len(chosen), 1, 1, 1)
        return images.clamp(-1, 1)


def train(augment: Augmentation, seconds: float, steps: int, batch: int) -> judge.Classifier:
    """`steps` is what decides the result; `seconds` only stops a run that is too slow to be worth waiting for."""
    classifier = judge.Classifier()
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    decay = [p for p in classifier.parameters() if p.ndim > 1]
    rest = [p for p in classifier.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0}], 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.15)
    clock, total, right, queue = time.time(), 0.0, 0, torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        while len(queue) < batch:
            queue = torch.cat([queue, torch.randperm(len(augment.glyphs), generator=augment.generator)])
        index, queue = queue[:batch], queue[batch:]
        images = augment(index).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = classifier(images)
        loss = F.cross_entropy(logits.float(), index)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total, right = total + loss.item(), right + (logits.argmax(1) == index).sum().item()
        if step % 100 == 0:
            print(f"{step} loss {total / 100:.3f} right {right / batch:.1f} % {time.time() - clock:.0f} s", flush=True)
            total, right = 0.0, 0
        if time.time() - clock > seconds:
            raise SystemExit(f"Only {step} of {steps} steps in {seconds:.0f} s: give --minutes more, or --steps less.")
    return classifier.eval()


def jpeg(images: torch.Tensor, quality: int) -> torch.Tensor:
    out = []
    for image in ((images + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.asarray(Image.open(file)).copy()))
    return torch.stack(out).permute(0, 3, 1, 2) / 127.5 - 1


def shuffle_tiles(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same colours and details in the wrong places, 4 x 4 tiles: what a judge must not call right."""
    tiles = images.unfold(2, 16, 16).unfold(3, 16, 16).flatten(2, 3)  # b, 3, 16 tiles, y, x
    tiles = tiles[:, :, torch.randperm(16, generator=generator)].unflatten(2, (4, 4))
    return tiles.transpose(3, 4).flatten(4).flatten(2, 3)


@torch.inference_mode()
def report(augment: Augmentation) -> None:
    """Shares named right by the shipped weights, with every emoji in turn and a seed that training did not use."""
    classifier, emoji, g = judge.load_classifier(), all_emoji(), augment.generator
    glyphs, n = augment.glyphs, len(emoji)
    index = torch.arange(n)
    still = (torch.full((n,), 0.85), torch.zeros(n), torch.zeros(n, 2))

    def backdrop() -> torch.Tensor:
        return augment.palette[torch.randint(len(augment.palette), (n,), generator=g)]

    def picture() -> torch.Tensor:
        return paint([place(glyphs, *jitter(n, g))], backdrop())

    checks = {
        "clean, on white": lambda: paint([place(glyphs, *still)], torch.ones(n, 3)),
        "clean, any background": lambda: paint([place(glyphs, *still)], backdrop()),
        "like the demo's training pictures": picture,
        "the same, through the autoencoder": lambda: augment.reconstruct(picture(), 0.0),
        "augmented as in training": lambda: augment(index),
        "real JPEG, quality 20 (unseen)": lambda: jpeg(picture(), 20),
        "a 16-pixel corner missing (unseen)": lambda: F.pad(picture()[:, :, 16:, 16:], (16, 0, 16, 0)),
        "shrunk to 16 x 16": lambda: augment.shrink(picture(), 16),
        "shrunk to 8 x 8 (unseen)": lambda: augment.shrink(picture(), 8),
        "latent noise 1.0 (unseen)": lambda: augment.vae.decode(augment.vae.encode(picture()) + augment.normal(n, 16, 16, 16)),
        "tiles shuffled (should fail)": lambda: shuffle_tiles(picture(), g),
        "shrunk to 2 x 2 (should fail)": lambda: augment.shrink(picture(), 2),
    }
    for name, make in checks.items():
        share = np.mean([(classifier(make()).argmax(1) == index).float().mean().item() for _ in range(2)])
        print(f"{share:7.1%}  {name}")
    wrong = torch.zeros(n, n)
    for _ in range(8):
        wrong.index_put_((index, classifier(augment.reconstruct(picture(), 0.0)).argmax(1)), torch.ones(()), accumulate=True)
    twins = [(int(wrong[a, b] + wrong[b, a]), emoji[a].name, emoji[b].name) for a, b in torch.combinations(index).tolist()]
    for count, a, b in sorted(twins, reverse=True)[:12]:
        if count:
            print(f"{count} of 16 confused: {a} / {b}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glyphs", type=Path, default=Path("build/emoji/glyphs.npy"))
    parser.add_argument("--micro", type=Path, default=WEIGHTS, help="weights of the demo model, for its autoencoder")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--report", action="store_true", help="only judge the weights that are there")
    args = parser.parse_args()
    glyphs = glyph_tensor(np.load(args.glyphs))
    vae = load_text_and_vae(*read_weights(args.micro))[1]
    if not args.report:
        torch.manual_seed(0)
        torch.set_num_threads(1)  # the order of sums stays the same; and two threads wait for each other on a busy machine
        trained = train(Augmentation(glyphs, vae, 1), args.minutes * 60, args.steps, args.batch)
        save_file({name: tensor.contiguous().half() for name, tensor in trained.state_dict().items()}, judge.WEIGHTS)
    report(Augmentation(glyphs, vae, 2))


if __name__ == "__main__":
    main()
