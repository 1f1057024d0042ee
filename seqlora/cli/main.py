"""The command line: `seqlora train | sample | compose | report | info | export | demo`, and the care of libraries."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import SeqLoRAError
from ..lora.targets import TARGETS
from ..settings import METHODS, Settings
from ..training.checkpoint import MINUTES
from .library import add_commands as add_library_commands
from .report import compose, demo, export, info, report
from .sample import sample
from .train import train


def folder(text: str) -> Path:
    try:
        return Path(text).resolve()  # "." has a name too
    except (OSError, RuntimeError) as error:  # links in a circle
        raise argparse.ArgumentTypeError(f"{text} is no folder ({error})") from error


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="seqlora", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")
    defaults = Settings()

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    def with_library(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("library", type=folder, help="the library's folder")
        sub.add_argument("concepts", nargs="*", default=["*"], help="'name' or 'name: 0.8'; all of them if none is given")

    sub = command("train", train, "teach a concept from a folder of pictures")
    sub.add_argument("images", type=Path, help="folder of pictures, each with a .txt caption beside it or none")
    sub.add_argument("--library", type=folder, required=True, help="the library's folder; made if it does not exist")
    sub.add_argument("--model", default="demo", help="a folder with a diffusers pipeline, or 'demo'")
    sub.add_argument("--name", help="the concept's name; the folder's name if not given")
    sub.add_argument("--trigger", required=True, help="a made-up word that stands for the concept in prompts")
    sub.add_argument("--class-word", default="", help="what kind of thing it is, such as 'dog'")
    sub.add_argument("--rank", type=int, default=16)
    sub.add_argument("--capacity", type=int, default=32, help="how many concepts the library is planned for")
    sub.add_argument("--targets", default="attention and mlp", choices=list(TARGETS))
    sub.add_argument("--method", default="seqlora", choices=list(METHODS))
    sub.add_argument("--size", type=int, help="shorter side of the pictures in pixels; the model's own if not given")
    sub.add_argument("--steps", type=int, default=defaults.steps)
    sub.add_argument("--batch-size", type=int, default=defaults.batch_size)
    sub.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    sub.add_argument("--basis-learning-rate", type=float, default=defaults.basis_learning_rate)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--replace", action="store_true", help="teach a concept anew; the old one stays until this is done")
    sub.add_argument("--checkpoint-minutes", type=float, default=MINUTES, help="between two savings of the unfinished training")

    sub = command("sample", sample, "draw pictures with any of a library's concepts")
    sub.add_argument("prompt")
    sub.add_argument("concepts", nargs="*", default=["*"], help="'name' or 'name: 0.8'; all of them if none is given")
    sub.add_argument("--library", type=folder, help="the library's folder; the bare model if not given")
    sub.add_argument("--model", default="demo", help="a folder with a diffusers pipeline, or 'demo'")
    sub.add_argument("--out", type=Path, default=Path("sample.png"))
    sub.add_argument("--count", type=int, default=4)
    sub.add_argument("--steps", type=int, default=25)
    sub.add_argument("--guidance", type=float, help="the model's usual one if not given")
    sub.add_argument("--seed", type=int, default=0)

    with_library(command("compose", compose, "show what summing concepts gives: ranks, overlap, crosstalk"))

    sub = command("report", report, "bound how much each concept suffers from the others; overlap and crosstalk")
    with_library(sub)
    sub.add_argument("--delta", type=float, default=0.05, help="chance that a bound fails")
    sub.add_argument("--sub-gaussian-constant", type=float, default=1.0, help="of the layers' inputs; 1 is a Gaussian's")
    sub.add_argument("--json", type=Path, help="also write everything to this file")
    sub.add_argument("--picture", type=Path, help="also draw it, as a PNG")

    sub = command("info", info, "list a library")
    sub.add_argument("library", type=folder, help="the library's folder")

    add_library_commands(command, folder)

    sub = command("export", export, "write the sum of concepts as one ordinary LoRA file")
    with_library(sub)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--format", default="comfyui", choices=["comfyui", "kohya", "diffusers"])
    sub.add_argument("--dtype", default="fp16", choices=["fp16", "fp32"])

    sub = command("demo", demo, "teach eight emoji to the demo model and draw all of them together")
    sub.add_argument("--out", type=Path, default=Path("build/demo"))
    sub.add_argument("--concepts", type=int, default=8)
    sub.add_argument("--seed", type=int, default=0)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (SeqLoRAError, OSError) as error:
        print(f"seqlora: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nseqlora: cancelled; the library is as it was{''.join(stop.args)}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
