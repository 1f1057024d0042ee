"""`seqlora sample`: a prompt and a selection to a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from ..api import load_model
from ..diffusion.model import NO_TRIGGERS
from ..diffusion.sampling import euler
from ..library.store import Library
from ..lora.compose import parse_selection
from ..prompt.grammar import read_prompt
from ..training.remarks import of_base, of_shared
from .arguments import Command, folder, picture_file, real, whole


def add_commands(command: Command) -> None:
    sub = command("sample", sample, "draw pictures with any of a library's concepts")
    sub.add_argument("prompt", help='@rex or @"red kettle":0.8 names a concept of the library and switches it on')
    sub.add_argument("concepts", nargs="*", help="'name', 'name: 0.8' or '*'; those that the prompt names if none is given")
    sub.add_argument("--library", type=folder, help="the library's folder; the bare model if not given")
    sub.add_argument("--model", default="demo", help="a folder with a diffusers pipeline, or 'demo'")
    sub.add_argument("--out", type=picture_file, default=Path("sample.png"))
    sub.add_argument("--count", type=whole(1, 1000), default=4)
    sub.add_argument("--steps", type=whole(1, 10_000), default=25)
    sub.add_argument("--guidance", type=real(-100, 100), help="the model's usual one if not given")
    sub.add_argument("--seed", type=whole(0), default=0)


def sample(args: argparse.Namespace) -> None:
    model = load_model(args.model)
    text, composed, triggers = args.prompt, {}, NO_TRIGGERS
    if args.library:
        library = Library.open(args.library)
        remark = of_base(library.path.name, library.base, model.fingerprint)
        if remark:
            print(f"seqlora: {remark}", file=sys.stderr)
        prompt = read_prompt(args.prompt, library.concepts)
        chosen = parse_selection("\n".join(args.concepts), library.names) if args.concepts else prompt.strengths
        on = {name: s for name, s in chosen.items() if s}
        shared = of_shared([library.find(name) for name in on])
        if shared:
            print(f"seqlora: {shared}", file=sys.stderr)
        text, composed, triggers = prompt.text, library.compose(on), library.triggers(on)
    generator = torch.Generator().manual_seed(args.seed)
    with torch.inference_mode(), model.using(composed):
        noise = torch.randn(args.count, *model.latent_shape, generator=generator)
        cond, uncond = model.encode_captions([text, ""], triggers)
        guidance = model.default_guidance if args.guidance is None else args.guidance
        latents = euler(model.denoiser, noise, [cond] * args.count, [uncond] * args.count, guidance, args.steps)
        pictures = model.decode(latents)
    row = torch.cat(list(pictures), 1).clamp(0, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((row * 255).round().to(torch.uint8).cpu().numpy()).save(args.out)
    print(args.out)
