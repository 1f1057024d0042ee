"""What the commands' arguments have in common: one sentence for what cannot be, before any work."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..settings import LIBRARY_OPTIONS, Option


class Command(Protocol):
    """Makes the parser of one command."""

    def __call__(self, name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser: ...


def folder(text: str) -> Path:
    try:
        return Path(text).resolve()  # "." has a name too
    except (OSError, RuntimeError) as error:  # links in a circle
        raise argparse.ArgumentTypeError(f"{text} is no folder ({error})") from error


def picture_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in Image.registered_extensions() or path.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is no name for a picture; end it with .png or .jpg")
    return path


def whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """A whole number within bounds; by default one that a seed or a size can be."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"'{text[:40]}' is no whole number from {least} to {most}")
        return value

    return number


def real(least: float, most: float = math.inf) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"'{text[:40]}' is no number from {least:g} to {most:g}")
        return value

    return number


def with_options(sub: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """A flag for each: `--batch-size` for batch_size."""
    for option in options:
        flag, about = f"--{option.name.replace('_', '-')}", option.help.replace("%", "%%")
        if isinstance(option.default, bool):
            sub.add_argument(flag, action="store_true", help=about)
            continue
        about = f"{about} Default: {option.default}."
        if option.choices:
            sub.add_argument(flag, choices=option.choices, default=option.default, help=about)
            continue
        within: Callable[[str], Any] = whole(int(option.least), int(option.most))
        if isinstance(option.default, float):
            within = real(option.least, option.most)
        sub.add_argument(flag, type=within, default=option.default, metavar="N", help=about)


def with_new_library(sub: argparse.ArgumentParser) -> None:
    """What a library is made of where there is none yet, and the model that it is for."""
    sub.add_argument("--model", default="demo", help="a folder with a diffusers pipeline, or 'demo'")
    with_options(sub, LIBRARY_OPTIONS.values())


def with_library(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("library", type=folder, help="the library's folder")
    sub.add_argument("concepts", nargs="*", default=["*"], help="'name' or 'name: 0.8'; all of them if none is given")
