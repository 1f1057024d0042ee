"""Somebody new at the editor: clicks that are counted, pictures as people have them, and what a result shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seqlora.demo.classifier import recognise
from seqlora.demo.pictures import all_emoji, concept_pictures, held_out_emoji

BUTTONS = ("Templates", "Run", "Choose pictures")  # all else that is clicked is a text in a window
IN_A_DIALOG = 2  # clicks: all files of a folder, and Open
OWN = held_out_emoji()[3]
SIDE = 64  # pixels, of the demo model's pictures


class Clicks:
    def __init__(self, page: Any):
        self.page, self.done, self.began = page, 0, time.monotonic()

    def click(self, name: str) -> None:
        self.page.wait_for_timeout(2500)
        self.done += 1
        if name in BUTTONS:
            self.page.get_by_role("button", name=name, exact=True).first.click()
        else:
            self.page.get_by_role("dialog").get_by_text(name, exact=True).click()

    def choose(self, name: str, files: list[Path]) -> None:
        """In the system's dialog, which no browser test can see."""
        with self.page.expect_file_chooser() as chooser:
            self.click(name)
        self.done += IN_A_DIALOG
        chooser.value.set_files(files)

    def tell(self, what: str, most: int) -> None:
        """Says how many there were, and how long it took. Raises SystemExit where that is more than `most`."""
        print(f"{what}: {self.done} clicks, {time.monotonic() - self.began:.0f} s", flush=True)
        if self.done > most:
            raise SystemExit(f"{what} takes {self.done} clicks, more than {most}")


def five_files(folder: Path) -> list[Path]:
    """Pictures of one thing, of all sorts of sizes and types, one transparent, one turned by its camera."""
    drawn, _ = concept_pictures(OWN, 5, 0)
    pictures = [Image.fromarray((((one.movedim(0, -1) + 1) / 2).clamp(0, 1) * 255).byte().numpy()) for one in drawn]
    flat = np.asarray(pictures[0])
    cut = Image.fromarray(np.dstack([flat, np.where((flat == flat[0, 0]).all(-1), 0, 255).astype(np.uint8)]))
    cut.resize((512, 512)).save(folder / "cut out.png")
    pictures[1].resize((1024, 1024)).save(folder / "IMG_0001.jpg", quality=92)
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures[2].resize((640, 640)).rotate(90).save(folder / "IMG_0002.JPG", exif=turned)
    pictures[3].resize((96, 96)).save(folder / "small.webp")
    wide = Image.new("RGB", (1024, 768), pictures[4].getpixel((0, 0)))
    wide.paste(pictures[4].resize((768, 768)), (128, 0))
    wide.save(folder / "wide.png")
    return sorted(folder.iterdir())


def check_recognised(file: Path, *names: str) -> None:
    """Raises SystemExit unless the classifier that comes with the demo sees these emoji in a picture, from left to right."""
    with Image.open(file) as picture:
        small = np.asarray(picture.convert("RGB").resize((SIDE * len(names), SIDE), Image.Resampling.BOX))
    parts = torch.from_numpy(small.copy()).movedim(-1, 0).float().div(127.5).sub(1).split(SIDE, 2)
    seen = tuple(all_emoji()[index].name for index in recognise(torch.stack(parts)))
    if seen != names:
        raise SystemExit(f"{file.name} shows {', '.join(seen)}; it should be {', '.join(names)}")
    print(f"recognised: {', '.join(seen)}", flush=True)
