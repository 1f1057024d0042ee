"""A list of pictures as text, one a line, and what a person would want to see of them before they are taught."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from ..errors import SeqLoRAError
from .pictures import Picture, caption_beside, contents, read_picture, to_pil
from .twins import Fingerprint, fingerprint, twins_among

BAR = "|"  # between a file and its caption
SIDE = 160  # pixels of a thumbnail
MOST = 200  # pictures that are looked at; the others are only counted
KEPT = 1000  # pictures that need not be looked at again, of some 10 KB


@dataclass(frozen=True)
class Seen:
    """One picture as it will be taught."""

    file: str
    size: tuple[int, int]  # upright
    becomes: tuple[int, int]
    kept: tuple[float, float]  # of its width and of its height: what is left of it in the middle
    transparent: bool
    thumbnail: str  # data URI of the whole picture, WebP; what is transparent there is transparent
    remarks: tuple[str, ...]
    print: Fingerprint


def parse_list(text: str) -> dict[str, str | None] | None:
    """File -> caption, from lines such as `1.jpg` or `1.jpg | a red kettle`; None for a file without a bar, whose caption lies
    beside it. None if no line names a file. Raises SeqLoRAError for a file that is named twice."""
    chosen: dict[str, str | None] = {}
    for line in text.splitlines():
        file, bar, caption = (part.strip() for part in line.partition(BAR))
        if not file:
            continue
        if file in chosen:
            raise SeqLoRAError(f"The list names '{file}' twice", "take one of the two off")
        chosen[file] = caption if bar else None
    return chosen or None


def survey(folder: Path, resolution: int | None = None) -> dict[str, Any]:
    """What `read_folder` would give, for JSON: `pictures` as they will be taught, each with its `twin`, None or how it is alike
    to which file before it; `left_out`, file -> why; `more`, how many were not looked at. No pictures are no error.

    Raises SeqLoRAError for a folder or a caption that cannot be read.
    """
    files, left_out = contents(folder)
    looked = list(files.items())[:MOST]
    seen, captions = [], []
    for file, beside in looked:
        try:
            about = file.stat()
            seen.append(_seen(file, about.st_mtime_ns, about.st_size, resolution))
        except (SeqLoRAError, OSError) as error:
            left_out[file.name] = str(error)
            continue
        captions.append(caption_beside(beside))
    told = [{key: value for key, value in vars(one).items() if key != "print"} for one in seen]
    for one, caption, twin in zip(told, captions, twins_among([one.print for one in seen]), strict=True):
        one |= {"caption": caption, "twin": twin and {"how": twin[0], "file": seen[twin[1]].file}}
    return {"pictures": told, "left_out": left_out, "more": len(files) - len(looked)}


@lru_cache(KEPT)
def _seen(file: Path, changed: int, size: int, resolution: int | None) -> Seen:
    """One picture; `changed` and `size` tell one version of the file from another. Raises SeqLoRAError."""
    whole = read_picture(file)
    fit = read_picture(file, resolution) if resolution else whole
    height, width, _ = fit.image.shape
    upright = _upright_size(file)
    scale = min(upright[0] / width, upright[1] / height)
    kept = (round(width * scale / upright[0], 3), round(height * scale / upright[1], 3))
    print = fingerprint(to_pil(fit.image))
    return Seen(fit.file, upright, (width, height), kept, fit.mask is not None, _thumbnail(whole), fit.remarks, print)


def _upright_size(file: Path) -> tuple[int, int]:
    with Image.open(file) as opened:
        lies = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return opened.size[::-1] if lies else opened.size


def _thumbnail(picture: Picture) -> str:
    small = to_pil(picture.image)
    if picture.mask is not None:
        small.putalpha(to_pil(picture.mask[..., None].expand(-1, -1, 3)).convert("L"))
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
