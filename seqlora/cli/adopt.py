"""`seqlora adopt`: a LoRA made elsewhere to a concept of a library."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..api import load_model
from ..settings import OPTIONS
from ..training.adopt import adopted_file
from ..training.request import TrainingRequest, check_words
from .arguments import Command, folder, with_new_library, with_options
from .train import teach

FLAGS = [OPTIONS[name] for name in ("steps", "seed", "interference_weight", "replace", "checkpoint_minutes")]


def add_commands(command: Command) -> None:
    sub = command("adopt", adopt, "make a LoRA that you have a concept, without its pictures")
    sub.add_argument("library", type=folder, help="the library's folder; made if it does not exist")
    sub.add_argument("file", type=Path, help="the LoRA, a .safetensors file")
    sub.add_argument("--name", help="the concept's name; the file's name if not given")
    sub.add_argument("--trigger", required=True, help="the word that the LoRA was made to listen to")
    sub.add_argument("--class-word", default="", help="what kind of thing it is, such as 'dog'")
    sub.add_argument("--fast", action="store_true", help="in closed form alone: seconds, but less of it is kept")
    with_new_library(sub)
    with_options(sub, FLAGS)


def adopt(args: argparse.Namespace) -> None:
    model = load_model(args.model)
    request = check_words(TrainingRequest(args.name or args.file.stem, args.trigger, args.class_word))
    adoption = adopted_file(model, args.file, args.fast)  # before there is a library for it
    teach(args, request, model, FLAGS, adoption)
