"""A concept's small picture, as a data URI: in its file's header under the key that other programs look at, so that it travels
with the file and goes with it."""

from __future__ import annotations

import base64
import io
import re

import torch
from PIL import Image
from torch import Tensor

KEY = "modelspec.thumbnail"
SIDE = 128  # pixels
MAX_BYTES = 8 << 10
QUALITIES = (80, 60, 40, 20, 5)
TYPES = {"image/webp": "WEBP", "image/jpeg": "JPEG"}
_URI = re.compile(r"data:(image/[a-z]+);base64,([A-Za-z0-9+/]+={0,2})")


def encode(picture: Tensor) -> str:
    """Picture (h, w, 3) in 0..1 -> data URI of at most MAX_BYTES, or "" where it cannot be made that small."""
    image = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    image.thumbnail((SIDE, SIDE))
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= MAX_BYTES:
            return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return ""


def decode(uri: str) -> tuple[str, bytes]:
    """(media type, bytes) of what `encode` made. Raises ValueError for anything that is not a small picture of a known type."""
    found = _URI.fullmatch(uri) if len(uri) <= 2 * MAX_BYTES else None
    if found is None or found[1] not in TYPES:
        raise ValueError("no thumbnail of a known type")
    data = base64.b64decode(found[2], validate=True)
    try:
        with Image.open(io.BytesIO(data), formats=[TYPES[found[1]]]) as image:
            width, height = image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError("no picture of the type that it names") from error
    if len(data) > MAX_BYTES or max(width, height) > SIDE:
        raise ValueError("too large for a thumbnail")
    return found[1], data
