"""`seqlora export`: any concepts as one ordinary LoRA file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..library.export import DTYPES, FORMATS, export_composed, export_embeddings
from ..library.store import Library
from ..lora.compose import parse_selection
from .arguments import Command, with_library


def add_commands(command: Command) -> None:
    sub = command("export", export, "write the sum of concepts as one ordinary LoRA file")
    with_library(sub)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--format", default="comfyui", choices=list(FORMATS))
    sub.add_argument("--dtype", default="fp16", choices=list(DTYPES))


def export(args: argparse.Namespace) -> None:
    library = Library.open(args.library)
    selection = parse_selection("\n".join(args.concepts), library.names)
    print(export_composed(library, selection, args.out, args.format, args.dtype))
    for path in export_embeddings(library, selection, args.out.parent / "embeddings"):
        print(path)
