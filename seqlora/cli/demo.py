"""`seqlora demo`: the method on the model that ships."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Command, whole


def add_commands(command: Command) -> None:
    sub = command("demo", demo, "teach eight emoji to the demo model and draw all of them together")
    sub.add_argument("--out", type=Path, default=Path("build/demo"))
    sub.add_argument("--concepts", type=int, default=8)
    sub.add_argument("--seed", type=whole(0), default=0)


def demo(args: argparse.Namespace) -> None:
    from ..demo.run_demo import run_demo, summary

    figures = run_demo(args.out, args.concepts, args.seed)
    print(summary(figures))
    print(f"{figures['seconds']} seconds in all; {args.out / 'demo.png'} and {args.out / 'demo.json'} were written")
