"""How often the demo model draws what it is asked for, counted by the demo's judge.

    python demo_model/evaluate.py --sheet

Asks for "a photo of {name}" of every base emoji and prints the share that the judge names right among all 720.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image

from seqlora.demo import micro
from seqlora.demo.classifier import recognise
from seqlora.demo.micro import IMAGE_SIZE, LATENT_CHANNELS, PATCH, WEIGHTS, MicroModel, load_micro
from seqlora.demo.pictures import all_emoji

SHEET = Path(__file__).parents[1] / "docs" / "pictures" / "base_samples.png"
COLUMNS, ROWS = 12, 8


def sample(model: MicroModel, captions: list[str], noise: torch.Tensor, steps: int, guidance: float) -> torch.Tensor:
    """Euler steps from noise (b, 16, 16, 16) to images (b, 3, 64, 64) in -1..1, with classifier-free guidance."""
    context = model.encode_text(captions + [""] * len(captions))
    x, sigmas = noise, torch.linspace(1, 0, steps + 1)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        timestep = (sigma * 1000).expand(2 * len(x))
        asked, free = micro.velocity(model.unet, torch.cat([x, x]), timestep, context).chunk(2)
        x = x + (following - sigma) * (free + guidance * (asked - free))
    return model.vae.decode(x)


def write_sheet(images: torch.Tensor, path: Path) -> None:
    """The first 12 x 8 images as a PNG of 256 colours: full colour triples its size and looks the same."""
    images = images[: COLUMNS * ROWS]
    blank = images.new_ones(COLUMNS * ROWS - len(images), *images.shape[1:])
    grid = torch.cat([images, blank]).unflatten(0, (ROWS, COLUMNS)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(((grid + 1) * 127.5).round().byte().numpy())
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--limit", type=int, default=None, help="ask for this many emoji only, evenly spread")
    parser.add_argument("--per", type=int, default=1, help="pictures of each")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sheet", type=Path, nargs="?", const=SHEET, help=f"write a sheet of samples (default {SHEET.name})")
    args = parser.parse_args()
    model = load_micro(args.weights)
    base = [i for i, e in enumerate(all_emoji()) if not e.held_out]
    count = min(args.limit or len(base), len(base))
    asked = [base[i * len(base) // count] for i in range(count)] * args.per
    generator, side = torch.Generator().manual_seed(args.seed), IMAGE_SIZE // PATCH
    clock, parts = time.time(), []
    for start in range(0, len(asked), args.batch):
        captions = [f"a photo of {all_emoji()[i].name}" for i in asked[start : start + args.batch]]
        noise = torch.randn(len(captions), LATENT_CHANNELS, side, side, generator=generator)
        parts.append(sample(model, captions, noise, args.steps, args.guidance))
    images = torch.cat(parts)
    named = recognise(images)
    right = named == torch.tensor(asked)
    kin = [all_emoji()[a].class_word == all_emoji()[b].class_word for a, b in zip(asked, named.tolist(), strict=True)]
    print(f"{right.float().mean():.1%} of {len(asked)} named right ({time.time() - clock:.0f} s)")
    print(f"{sum(kin) / len(kin):.1%} named as something of the right class")
    by_class = defaultdict(list)
    for index, ok in zip(asked, right.tolist(), strict=True):
        by_class[all_emoji()[index].class_word].append(ok)
    for word, oks in sorted(by_class.items()):
        print(f"{sum(oks) / len(oks):7.1%}  {word} ({len(oks)})")
    if args.sheet:
        write_sheet(images, args.sheet)
        print(f"{args.sheet}: {args.sheet.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
