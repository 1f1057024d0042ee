"""Pictures as a person sees them: upright, on a plain colour, in their own brightness, with the captions that lie beside them.

One reader for the command line, the node and whoever calls from Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import SeqLoRAError
from .text import clean_text, decode_text

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
CAPTIONS = (".txt", ".caption")
MAX_CAPTION = 1 << 20  # bytes
MAX_RATIO = 2.0  # of the sides; what is longer is cropped
BACKGROUND = (255, 255, 255)  # behind what is transparent
ALIKE = 4  # most bits of 64 in which the fingerprints of two near-duplicates differ
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)  # whatever Pillow raises for a bad file


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


def read_folder(folder: Path | str, resolution: int | None = None) -> Pictures:
    """The pictures of a folder in the order of their names, with the captions in `<picture>.txt` or `.caption` beside them.

    With `resolution`, each is scaled and cropped as `fitted` does. Hidden files are passed over; what is no picture, or cannot
    be read, is left out and named. Raises SeqLoRAError where no picture is left, or a caption is no text.
    """
    folder = Path(folder)
    files = sorted(_visible(folder), key=_natural) if folder.is_dir() else []
    texts = {(file.stem, file.suffix.lower()): file for file in files if file.suffix.lower() in CAPTIONS}
    found, left_out, used = [], {}, set()
    for file in files:
        if file.suffix.lower() in CAPTIONS:
            continue
        if file.suffix.lower() not in SUFFIXES:
            left_out[file.name] = "no picture of a kind that is read; save it as PNG or JPEG"
            continue
        caption_file = next((texts[file.stem, suffix] for suffix in CAPTIONS if (file.stem, suffix) in texts), None)
        used.add(caption_file)
        try:
            picture = read_picture(file, resolution)
        except SeqLoRAError as error:
            left_out[file.name] = str(error)
            continue
        found.append(replace(picture, caption=_caption(caption_file) if caption_file else ""))
    left_out |= {file.name: "no picture of that name" for file in texts.values() if file not in used}
    if not found:
        why = f" ({next(iter(left_out.values()))})" if left_out else ""
        raise SeqLoRAError(f"There are no pictures in {folder}{why}", "put .png, .jpg or .webp files there")
    return Pictures(_named_duplicates(found), left_out)


def read_picture(file: Path, resolution: int | None = None) -> Picture:
    """One picture. Raises SeqLoRAError, naming the file, for one that cannot be read."""
    try:
        with Image.open(file) as opened:
            return picture_from(opened, file.name, resolution)
    except DAMAGED as error:
        if isinstance(error, SeqLoRAError):
            raise
        raise SeqLoRAError(f"{file.name} cannot be read as a picture ({error})", "remove or replace it") from error


def picture_from(opened: Image.Image, name: str, resolution: int | None = None) -> Picture:
    """A picture that Pillow has opened. Raises what Pillow raises."""
    remarks = []
    if getattr(opened, "n_frames", 1) > 1:
        remarks.append("it moves; its first frame is used")
    if resolution is not None and opened.format == "JPEG":
        opened.draft("RGB", (2 * resolution, 2 * resolution))  # decoded at the size that is needed, or a little more
    turned = ImageOps.exif_transpose(opened)
    image, mask = _flattened(turned)
    if mask is not None:
        remarks.append("what was transparent is white now")
    if resolution is not None:
        width, height = image.size
        image = fitted(image, resolution)
        mask = fitted(mask, resolution) if mask is not None else None
        remarks += _resizing(width, height, image)
    return Picture(name, to_tensor(image), "", to_tensor(mask)[..., 0] if mask is not None else None, tuple(remarks))


def fitted(image: Image.Image, resolution: int) -> Image.Image:
    """Scaled to about resolution x resolution pixels of its own proportions and cropped from the middle.

    Sides are multiples of 64, of 8 below 256, and at most MAX_RATIO apart: a panorama keeps its middle.
    """
    step = 64 if resolution >= 256 else 8
    ratio = min(max(image.width / image.height, 1 / MAX_RATIO), MAX_RATIO)
    width = max(step, round(resolution * ratio**0.5 / step) * step)
    height = max(step, round(resolution / ratio**0.5 / step) * step)
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


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
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would cut off at 255
        values = np.asarray(image).astype(np.float64) / 65535
        image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    if image.mode == "F":
        image = Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8))
    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB"), None
    seen = image.convert("RGBA")
    mask = seen.getchannel("A")
    if mask.getextrema()[0] == 255:
        return seen.convert("RGB"), None
    plain = Image.new("RGBA", seen.size, (*BACKGROUND, 255))
    plain.alpha_composite(seen)
    return plain.convert("RGB"), mask


def _resizing(width: int, height: int, image: Image.Image) -> list[str]:
    """What a person would want to know of how a picture was made to fit."""
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


def _natural(file: Path) -> list[tuple[int, int, str]]:
    """So that 2.png comes before 10.png."""
    parts = re.split(r"(\d{1,18})", file.name.casefold())
    return [(1, int(part), "") if part.isdigit() and part.isascii() else (0, 0, part) for part in parts]


def _caption(file: Path) -> str:
    try:
        with open(file, "rb") as opened:
            return clean_text(decode_text(opened.read(MAX_CAPTION), str(file)))
    except OSError as error:
        raise SeqLoRAError(f"{file} cannot be read ({error.strerror})", "check its permissions") from error


def _named_duplicates(pictures: Sequence[Picture]) -> list[Picture]:
    """With a remark on each picture that is, or nearly is, one before it."""
    marked: list[Picture] = []
    prints: list[int] = []
    for picture in pictures:
        print_ = _fingerprint(picture.image)
        nearest = min(range(len(prints)), key=lambda i: (print_ ^ prints[i]).bit_count(), default=None)
        if nearest is not None and (print_ ^ prints[nearest]).bit_count() <= ALIKE:
            other = marked[nearest]
            same = picture.image.shape == other.image.shape and torch.equal(picture.image, other.image)
            picture = replace(
                picture, remarks=(*picture.remarks, f"the same as {other.file}" if same else f"much like {other.file}")
            )
        marked.append(picture)
        prints.append(print_)
    return marked


def _fingerprint(image: Tensor) -> int:
    """64 bits: whether brightness rises from one cell of an 8 x 9 grid to the next (a difference hash)."""
    grid = np.asarray(to_pil(image).convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int("".join("1" if rises else "0" for rises in (grid[:, 1:] > grid[:, :-1] + 1).flat), 2)
