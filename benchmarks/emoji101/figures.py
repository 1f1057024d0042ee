"""The pictures of the results page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image, ImageDraw, ImageFont

from .found import mean_and_error
from .methods import METHODS
from .tables import DEFAULT, sizes_of

if TYPE_CHECKING:
    from .found import Found

LINES = ("-", "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)), (0, (1, 5)))  # one a group of methods


def draw_figures(found: Mapping[str, Found], common: Mapping[str, Found], folder: Path, architecture: str) -> list[str]:
    """Writes the pictures; returns them as Markdown. `common`: the runs of as many concepts as all methods taught."""
    made = []
    for name, what, runs, draw in (
        ("identity", "Identity of the composed concepts against their number", found, identity_against_number),
        ("crosstalk", "Crosstalk between concepts: how much a row acts on what a column sees", common, crosstalk_maps),
        (
            "grid",
            "The first concepts taught, each row drawn with a method's whole library on, from the same noise",
            common,
            picture_grid,
        ),
    ):
        path = folder / f"emoji101-{architecture}-{name}.png"
        path.unlink(missing_ok=True)
        draw(runs, path)
        if not path.exists():  # no run has what it shows
            continue
        made.append(f"**{what}**\n\n![{what}](pictures/{path.name})")
    return made


def identity_against_number(found: Mapping[str, Found], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 5.5), dpi=110)
    groups = list(dict.fromkeys(METHODS[key].group for key in found))
    for number, (key, method) in enumerate(found.items()):
        sizes = [n for n in sizes_of(found) if method.at(n, "cosine")]
        means, errors = zip(*(mean_and_error(method.at(n, "cosine")) for n in sizes), strict=True)
        style = LINES[groups.index(METHODS[key].group) % len(LINES)]
        look = {"color": "black", "linewidth": 3, "zorder": 9} if key == DEFAULT else {"color": f"C{number % 10}"}
        axes.errorbar(sizes, means, errors, label=method.title, linestyle=style, marker="o", ms=3, **look)
    axes.set(xscale="log", xlabel="concepts summed", ylabel="cosine to the concept's own pictures")
    axes.set_xticks(sizes_of(found), [str(n) for n in sizes_of(found)])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=4)
    _save(figure, path)


def crosstalk_maps(found: Mapping[str, Found], path: Path) -> None:
    chosen = [
        key for key in ("lora", "oa", "lora+", "frozen", "seqlora") if key in found and found[key].each("crosstalk table")
    ]
    if not chosen:
        return
    figure, axes = plt.subplots(1, len(chosen), figsize=(3 * len(chosen), 3.4), dpi=110, squeeze=False)
    for axis, key in zip(axes[0], chosen, strict=True):
        shown = axis.imshow(found[key].each("crosstalk table")[0], vmin=0, vmax=0.5, cmap="magma")
        axis.set_title(found[key].title, fontsize=7)
        axis.tick_params(labelsize=6)
    figure.colorbar(shown, ax=axes, shrink=0.7)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def picture_grid(found: Mapping[str, Found], path: Path) -> None:
    strips = [(f.title, f.paths[0].with_suffix(".webp")) for f in found.values()]
    rows = [(title, Image.open(file).convert("RGB")) for title, file in strips if file.exists()]
    if not rows:
        return
    width, side = rows[0][1].width, rows[0][1].height // 2
    font = ImageFont.load_default()
    margin = 24 + round(max(font.getlength(title) for title, _ in rows))
    page = Image.new("RGB", (margin + width, side * (len(rows) + 1)), "white")
    pen = ImageDraw.Draw(page)
    pen.text((8, side // 2 - 6), "the concepts", fill="black")
    page.paste(rows[0][1].crop((0, 0, width, side)), (margin, 0))
    for number, (title, strip) in enumerate(rows, 1):
        pen.text((8, number * side + side // 2 - 6), title, fill="black")
        page.paste(strip.crop((0, side, width, 2 * side)), (margin, number * side))
    page.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
