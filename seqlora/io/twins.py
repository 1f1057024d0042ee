"""Pictures that are, or nearly are, the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

ALIKE = 4  # most bits of 64 in which the fingerprints of two near-duplicates differ
COLOURS = 0.1  # most that their colours differ, of 0..1


class Fingerprint(NamedTuple):
    """By which pictures are told from each other."""

    bits: int  # 64: whether brightness rises from one cell of an 8 x 9 grid to the next (a difference hash)
    colours: np.ndarray  # of the cells in 0..1: without them whatever lies in one place on a plain ground would be alike
    digest: bytes  # of all pixels


def fingerprint(picture: Image.Image) -> Fingerprint:
    small = picture.resize((9, 8), Image.Resampling.BOX)
    grid = np.asarray(small.convert("L")).astype(np.int16)
    bits = int("".join("1" if rises else "0" for rises in (grid[:, 1:] > grid[:, :-1] + 1).flat), 2)
    digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest()
    return Fingerprint(bits, np.asarray(small).astype(np.float32) / 255, digest)


def twins_among(prints: Sequence[Fingerprint]) -> list[tuple[str, int] | None]:
    """For each picture how it is alike to one before it, and which; None where there is none."""
    found: list[tuple[str, int] | None] = []
    for number, one in enumerate(prints):
        near = [i for i, other in enumerate(prints[:number]) if (one.bits ^ other.bits).bit_count() <= ALIKE]
        near = [i for i in near if np.abs(one.colours - prints[i].colours).max() <= COLOURS]
        if near:
            nearest = min(near, key=lambda i: (one.bits ^ prints[i].bits).bit_count())
            found.append(("the same as" if one.digest == prints[nearest].digest else "much like", nearest))
        else:
            found.append(None)
    return found
