"""Pictures as a person sees them: upright, on a plain colour, in their own brightness, with the captions that lie beside them.

One reader for the command line, the node and whoever calls from Python.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import SeqLoRAError
from .text import clean_text, decode_text
from .twins import fingerprint, twins_among

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
CAPTIONS = (".txt", ".caption")
MAX_CAPTION = 1 << 20  # bytes
MAX_RATIO = 2.0  # of the sides; what is longer is cropped
BACKGROUND = (255, 255, 255)  # behind what is transparent
MAX_SIDE = 4096  # most that a picture can be asked to be scaled to
LARGEST = 2048  # a picture of more than LARGEST x LARGEST pixels is never held: no model is taught at that size


@dataclass(frozen=True)
class Picture:
    """One picture, ready to be taught."""

    file: str
    image: Tensor  # (h, w, 3) in 0..1
    caption: str = ""  # none if empty
    mask: Tensor | None = None  # (h, w) in 0..1, how opaque it was; None where it had no transparency
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """What a folder holds."""

    pictures: list[Picture]
    left_out: dict[str, str] = field(default_factory=dict)  # file -> why

    @property
    def images(self) -> list[Tensor]:
        return [picture.image for picture in self.pictures]

    @property
    def captions(self) -> list[str]:
        """One for each picture, "" where there is none."""
        return [picture.caption for picture in self.pictures]

    def lines(self) -> list[str]:
        """What a person should know: how many, what was left out and why, what is remarkable about each."""
        captioned = sum(bool(picture.caption) for picture in self.pictures)
        said = [f"{len(self.pictures)} pictures, {captioned} with a caption"]
        if self.left_out:
            said.append("left out: " + ", ".join(f"{file} ({why})" for file, why in self.left_out.items()))
        said += [f"{picture.file}: {remark}" for picture in self.pictures for remark in picture.remarks]
        return said


class Contents(NamedTuple):
    """What lies in a folder, before a picture is opened."""

    pictures: dict[Path, Path | None]  # in the order of their names -> the file of the caption
    left_out: dict[str, str]  # file -> why


def read_folder(folder: Path | str, resolution: int | None = None, chosen: Mapping[str, str | None] | None = None) -> Pictures:
    """The pictures of a folder in the order of their names, with the captions in `<picture>.txt` or `.caption` beside them.

    With `resolution`, each is scaled and cropped as `fitted` does; without, one of more than LARGEST x LARGEST pixels is scaled
    down. Hidden files are passed over; what is no picture, or cannot be read, is left out and named. `chosen`: only these, in
    this order: file -> its caption, or None for the one beside it. Raises SeqLoRAError where no picture is left, one that was
    chosen is not there, or a caption is no text.
    """
    files, left_out = contents(Path(folder), chosen)
    found, prints = [], []
    for file, beside in files.items():
        try:
            picture = read_picture(file, resolution)
        except SeqLoRAError as error:
            left_out[_shown(file)] = str(error)
            continue
        own = chosen[_shown(file)] if chosen else None
        found.append(replace(picture, caption=caption_beside(beside) if own is None else clean_text(own)))
        prints.append(fingerprint(to_pil(picture.image)))
    if not found:
        why = f" ({next(iter(left_out.values()))})" if left_out else ""
        raise SeqLoRAError(f"There are no pictures in {folder}{why}", "put .png, .jpg or .webp files there")
    for number, twin in enumerate(twins_among(prints)):
        if twin:
            remark = f"{twin[0]} {found[twin[1]].file}"
            found[number] = replace(found[number], remarks=(*found[number].remarks, remark))
    return Pictures(found, left_out)


def contents(folder: Path, chosen: Mapping[str, str | None] | None = None) -> Contents:
    """The picture files of a folder, or those that were chosen. Raises SeqLoRAError as `read_folder` does."""
    try:
        files = sorted(_visible(folder), key=_natural) if folder.is_dir() else []
    except OSError as error:
        raise SeqLoRAError(f"{folder} cannot be read ({error.strerror})", "check its permissions") from error
    texts = [file for file in files if file.suffix.lower() in CAPTIONS]
    beside = _by_name(texts)
    found: dict[Path, Path | None] = {}
    left_out = {}
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            found[file] = beside.get(file.stem) or beside.get(_same(file.stem))
        elif file not in texts:
            left_out[_shown(file)] = "no picture of a kind that is read; save it as PNG or JPEG"
    used = list(found.values())
    for file in texts:
        if file not in used:
            other = next((one for one in used if one and _same(one.stem) == _same(file.stem)), None)
            left_out[_shown(file)] = f"{_shown(other)} is used" if other else "no picture of that name"
    if chosen is None:
        return Contents(found, left_out)
    named = {_shown(file): file for file in found}
    missing = [name for name in chosen if name not in named]
    if missing:
        raise SeqLoRAError(f"There is no picture '{missing[0]}' in {folder}", "put the file back, or take it off the list")
    return Contents({named[name]: found[named[name]] for name in chosen}, {})


def read_picture(file: Path, resolution: int | None = None) -> Picture:
    """One picture. Raises SeqLoRAError, naming the file, for one that cannot be read."""
    try:
        with Image.open(file) as opened:
            return picture_from(opened, _shown(file), resolution)
    except Exception as error:  # each decoder has its own for a damaged file, TypeError and RuntimeError among them
        raise SeqLoRAError(f"{_shown(file)} cannot be read as a picture ({error})", "remove or replace it") from error


def picture_from(opened: Image.Image, name: str, resolution: int | None = None) -> Picture:
    """A picture that Pillow has opened. Raises what Pillow raises."""
    remarks, size = [], opened.size
    if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":  # a phone's photo, with its depth or a preview behind it
        remarks.append("it has several pages or moves; the first is used")
    if opened.format in ("JPEG", "MPO"):  # decoded at the size that is needed, or a little more
        opened.draft("RGB", (2 * resolution,) * 2 if resolution else _within(opened))
    turned = ImageOps.exif_transpose(opened)
    if (turned.width < turned.height) != (size[0] < size[1]):
        size = size[::-1]
    image, mask = _flattened(turned)
    if mask is not None:
        remarks.append("what was transparent is white now")
    if resolution or image.size != size or _within(image) != image.size:
        image, mask = _resized(image, resolution), _resized(mask, resolution) if mask else None
        remarks += _resizing(*size, image, resolution)
    return Picture(name, to_tensor(image), "", to_tensor(mask)[..., 0] if mask else None, tuple(remarks))


def _resized(image: Image.Image, resolution: int | None) -> Image.Image:
    return fitted(image, resolution) if resolution else image.resize(_within(image), Image.Resampling.LANCZOS, reducing_gap=3)


def _within(image: Image.Image) -> tuple[int, int]:
    """Its size, or in its own proportions as many pixels as may be held."""
    scale = min(1.0, LARGEST / (image.width * image.height) ** 0.5)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def fitted(image: Image.Image, resolution: int) -> Image.Image:
    """Scaled to about resolution x resolution pixels of its own proportions and cropped from the middle.

    Sides are multiples of 64, of 8 below 256, and at most MAX_RATIO apart: a panorama keeps its middle.
    """
    step = 64 if resolution >= 256 else 8
    ratio = min(max(image.width / image.height, 1 / MAX_RATIO), MAX_RATIO)
    width = max(step, round(resolution * ratio**0.5 / step) * step)
    height = max(step, round(resolution / ratio**0.5 / step) * step)
    spare = int(min(image.width / width, image.height / height) / 3)
    return ImageOps.fit(image.reduce(spare) if spare > 1 else image, (width, height), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """(h, w, channels) in 0..1."""
    return (
        torch.from_numpy(np.array(image.convert("RGB") if image.mode != "L" else image))
        .float()
        .div(255)
        .reshape(image.height, image.width, -1)
    )


def to_pil(image: Tensor) -> Image.Image:
    """From (h, w, 3) in 0..1; what lies outside is cut."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _flattened(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """In 8-bit RGB on a plain colour, and how opaque it was."""
    if image.mode.startswith(("I", "F")):  # more than 8 bits a pixel, which convert() would cut off at 255
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        ranges = (65535,) if image.mode.startswith("I") else (1, 255, 65535)
        full = next((full for full in ranges if values.max() <= full), values.max())
        image = Image.fromarray(((values / full).clip(0, 1) * 255).round().astype(np.uint8))
    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB"), None
    seen = image.convert("RGBA")
    mask = seen.getchannel("A")
    if mask.getextrema()[0] == 255:
        return seen.convert("RGB"), None
    plain = Image.new("RGBA", seen.size, (*BACKGROUND, 255))
    plain.alpha_composite(seen)
    return plain.convert("RGB"), mask


def _resizing(width: int, height: int, image: Image.Image, resolution: int | None) -> list[str]:
    """What a person would want to know of how a picture was made to fit."""
    if not resolution:
        return [f"its {width} x {height} pixels were scaled down to {image.width} x {image.height}"]
    said = []
    if width * height < image.width * image.height / 4:
        said.append(f"it is small ({width} x {height}) and was scaled up to {image.width} x {image.height}")
    if not 1 / MAX_RATIO <= width / height <= MAX_RATIO:
        said.append(f"of its {width} x {height} pixels the middle was cropped, as {image.width} x {image.height}")
    return said


def _visible(folder: Path) -> Iterator[Path]:
    """Files that a person would call theirs: not those that systems put beside them."""
    for file in folder.iterdir():
        if not file.name.startswith((".", "~$")) and file.name.lower() not in ("thumbs.db", "desktop.ini") and file.is_file():
            yield file


def _natural(file: Path) -> tuple[list[tuple[int, int, str]], str]:
    """So that 2.png comes before 10.png; the name itself decides between 1.png and 01.png, whatever the disk's order."""
    parts = re.split(r"(\d{1,18})", file.stem.casefold())
    return [(1, int(part), "") if part.isdigit() and part.isascii() else (0, 0, part) for part in parts], file.name


def _shown(file: Path) -> str:
    """Its name as text; the bytes of an old disk's name need be none."""
    return os.fsencode(file.name).decode(errors="replace")


def _same(stem: str) -> str:
    """The same for names that some file system takes for one another."""
    return unicodedata.normalize("NFC", stem).casefold()


def _by_name(texts: Sequence[Path]) -> dict[str, Path]:
    """Caption files by the stem they have, and by what a file system could take it for; .txt before .caption."""
    ordered = sorted(texts, key=lambda file: CAPTIONS.index(file.suffix.lower()), reverse=True)
    return {_same(file.stem): file for file in ordered} | {file.stem: file for file in ordered}


def caption_beside(file: Path | None) -> str:
    """What a caption file says; "" where there is none. Raises SeqLoRAError for one that is no text."""
    if file is None:
        return ""
    try:
        with open(file, "rb") as opened:
            return clean_text(decode_text(opened.read(MAX_CAPTION), str(file)))
    except OSError as error:
        raise SeqLoRAError(f"{file} cannot be read ({error.strerror})", "check its permissions") from error
