"""`seqlora train`: pictures and a trigger to a concept of a library."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..api import load_model
from ..diffusion.model import SamplingModel
from ..io.pictures import read_folder
from ..library.manifest import Manifest
from ..library.store import Library
from ..library.writer import MANIFEST
from ..settings import OPTIONS, Option, RunOptions, Settings, settings_of
from ..training.adopt import Adoption
from ..training.plan import plan
from ..training.progress import Phase, Progress, run_to_end
from ..training.request import TrainingRequest, check_request
from ..training.result import describe_result
from ..training.train import train_steps
from .arguments import Command, folder, whole, with_new_library, with_options
from .log import log_to_stderr

# Previews are the editor's, and a pipeline decides itself when it computes parts twice.
FLAGS = [
    option for name, option in OPTIONS.items() if name not in ("preview_every", "preview_prompt", "gradient_checkpointing")
]


def add_commands(command: Command) -> None:
    sub = command("train", train, "teach a concept from a folder of pictures")
    sub.add_argument("images", type=Path, help="folder of pictures, each with a .txt caption beside it or none")
    sub.add_argument("--library", type=folder, required=True, help="the library's folder; made if it does not exist")
    sub.add_argument("--name", help="the concept's name; the folder's name if not given")
    sub.add_argument("--trigger", required=True, help="a made-up word that stands for the concept in prompts")
    sub.add_argument("--class-word", default="", help="what kind of thing it is, such as 'dog'")
    with_new_library(sub)
    sub.add_argument("--size", type=whole(16, 16384), help="shorter side of the pictures; the model's own if not given")
    sub.add_argument("--plan", action="store_true", help="only say what it will take: time, memory, disk; writes nothing")
    with_options(sub, FLAGS)


def show_progress(progress: Progress) -> None:
    if progress.note:
        print(f"\nseqlora: {progress.note}", file=sys.stderr)
    end = "\n" if progress.step == progress.steps else ""
    print(f"\r{progress}   ", end=end, file=sys.stderr, flush=True)


def train(args: argparse.Namespace) -> None:
    model = load_model(args.model)
    side = args.size or model.picture_side
    found = read_folder(args.images, side)
    for line in found.lines():
        print(f"seqlora: {line}", file=sys.stderr)
    lesson = TrainingRequest(args.name or args.images.name, args.trigger, args.class_word, found.images, found.captions)
    lesson = check_request(lesson)  # before there is a library for it
    if args.plan:
        settings, _ = chosen(args, FLAGS)
        made_for = Manifest(args.rank, args.capacity, args.targets)
        there = (args.library / MANIFEST).exists()
        library = Library.open(args.library) if there else Library(args.library, made_for)
        print(*plan(library, lesson, settings, model).lines(), sep="\n")
        return
    teach(args, lesson, model, FLAGS)


def chosen(args: argparse.Namespace, flags: Sequence[Option]) -> tuple[Settings, RunOptions]:
    return settings_of({option.name: getattr(args, option.name) for option in flags})


def teach(
    args: argparse.Namespace,
    request: TrainingRequest,
    model: SamplingModel,
    flags: Sequence[Option],
    adoption: Adoption | None = None,
) -> None:
    """Into the library that the arguments name; prints what was taught."""
    settings, run = chosen(args, flags)
    library = Library.create(args.library, args.rank, args.capacity, args.targets)
    steps = train_steps(library, request, settings, model, run.checkpoint_minutes, run.replace, adoption)
    with log_to_stderr(), ControlC() as pressed:
        taught = run_to_end(steps, pressed.tell)
    print(json.dumps(describe_result(taught), indent=1))


class ControlC:
    """Ctrl-C while a concept is taught: once ends the training and keeps what was learned, twice cancels it.

    Either waits for the end of the step, so that what is kept is whole; a third time does not wait.
    """

    def __enter__(self) -> ControlC:
        self.times, self.step = 0, 0
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self.times += 1
        if self.times > 2:
            raise KeyboardInterrupt
        if self.times == 1:
            os.write(2, b"\nseqlora: keeping what was learned so far; Ctrl-C again cancels\n")  # print may be in use

    def tell(self, progress: Progress) -> str | None:
        show_progress(progress)
        if progress.phase is Phase.TRAINING:
            self.step = progress.step
        if self.times > 1 or (self.times and not self.step):  # before the first step there is nothing to keep
            raise KeyboardInterrupt(f"; the same command goes on from step {self.step}" if self.step else "")
        return "keep" if self.times else None
