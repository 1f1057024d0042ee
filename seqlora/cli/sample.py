"""`seqlora sample`: a prompt and a selection to a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from ..diffusion.model import Model
from ..library.composition import compose_library
from ..library.store import Library
from ..lora.compose import parse_selection


def load_model(spec: str) -> Model:
    if spec == "demo":
        from ..demo.demo_model import DemoModel

        return DemoModel()
    from ..backends.load import load_pipeline

    return load_pipeline(Path(spec))


def sample(args: argparse.Namespace) -> None:
    from ..diffusion.sampling import euler

    model = load_model(args.model)
    composed = {}
    if args.library:
        library = Library.open(args.library)
        composed = compose_library(library, parse_selection("\n".join(args.concepts), library.names))
    generator = torch.Generator().manual_seed(args.seed)
    with torch.inference_mode(), model.using(composed):  # type: ignore[attr-defined]
        noise = torch.randn(args.count, *model.latent_shape, generator=generator)  # type: ignore[attr-defined]
        cond, uncond = model.encode_captions([args.prompt, ""])
        guidance = model.default_guidance if args.guidance is None else args.guidance  # type: ignore[attr-defined]
        latents = euler(model.denoiser, noise, [cond] * args.count, [uncond] * args.count, guidance, args.steps)
        pictures = model.decode(latents)  # type: ignore[attr-defined]
    row = torch.cat(list(pictures), 1).clamp(0, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((row * 255).round().to(torch.uint8).cpu().numpy()).save(args.out)
    print(args.out)
