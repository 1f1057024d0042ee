"""A library's report as one picture, drawn with Pillow alone: a light card, for any surroundings and for paper. At 150 dots
per inch a small library's is as wide as an A4 page is long."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

WIDTH = 1754  # at least
MARGIN = 64
CARD, LINE, GREY = (255, 255, 255), (196, 199, 206), (226, 228, 232)
TEXT, QUIET = (24, 26, 38), (80, 84, 98)
LEAST, MOST = 1e-3, 1.0  # shares between which colours differ; the same in every picture, so that pictures can be compared
MAP_SIDE = 570  # pixels that a heatmap takes, if its cells are not smaller than MIN_CELL
MIN_CELL, MAX_CELL = 16, 130
LABEL = 210  # pixels that a name may take
ROWS = 40  # bars in a column
# Tried in this order for names that Pillow's own font lacks letters for; what the usual systems have.
FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")
NOWHERE = "\U0010fffd"  # a character that no font has


def draw_report(report: Mapping[str, Any]) -> Image.Image:
    """The picture of what `library_report` returns: overlap and crosstalk, capacity, forgetting."""
    names = [entry["name"] for entry in report["concepts"]]
    cell = max(MIN_CELL, min(MAX_CELL, MAP_SIDE // len(names)))
    half = max((WIDTH - 3 * MARGIN) // 2, LABEL + cell * len(names))
    page = _Page(3 * MARGIN + 2 * half, len(names))
    left, right = MARGIN, 2 * MARGIN + half
    top = page.text((left, MARGIN), f"Concept library {report['library']}", 44)
    top = page.text((left, top + 10), summary(report), 24, QUIET) + 44
    bottoms = []
    for x, key in ((left, "overlap"), (right, "crosstalk")):
        title, about = MAPS[key]
        y = page.text((x, top), title, 32)
        y = page.paragraph((x, y + 6), about, half)
        bottoms.append(page.heatmap((x, y + 24), names, report[key], cell))
    top = page.legend((left, max(bottoms) + 28)) + 56
    below = page.capacity((left, top), report, half)
    top = max(below, page.forgetting((right, top), report, half))
    return page.finished(top + MARGIN)


def as_png(picture: Image.Image) -> bytes:
    """A PNG file that prints at 150 dots per inch."""
    file = io.BytesIO()
    picture.save(file, "PNG", dpi=(150, 150))
    return file.getvalue()


MAPS = {
    "overlap": (
        "Overlap",
        "How much of a concept's directions (row) another one (column) uses too. Concepts at right angles share nothing.",
    ),
    "crosstalk": (
        "Crosstalk",
        "How much a concept (row) acts on what another one (column) sees, as a share of that one's own change.",
    ),
}


def summary(report: Mapping[str, Any]) -> str:
    """One line: what is in the library, and its largest figures."""
    capacity, entries = report["capacity"], report["concepts"]
    parts = [
        f"{capacity['concepts']} of {capacity['planned']} concepts",
        f"rank up to {max(entry['rank'] for entry in entries)}",
        f"{report['layers']} layers",
    ]
    if len(entries) < capacity["concepts"]:
        parts.insert(1, f"{len(entries)} selected")
    if len(entries) > 1:
        for key in MAPS:
            largest = max(value for i, row in enumerate(report[key]) for j, value in enumerate(row) if i != j)
            parts.append(f"largest {key} {percent(largest)}")
    return "  \u00b7  ".join(parts)


def percent(share: float) -> str:
    """0.0123 -> '1.2 %'."""
    if share < LEAST / 2:
        return "0 %"
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def colour(share: float) -> Colour:
    """The colour of a share: log scale, evenly lighter to darker for the eye, so that it also reads in grey."""
    t = (math.log(max(share, LEAST)) - math.log(LEAST)) / (math.log(MOST) - math.log(LEAST))
    return _even(min(t, 1.0))


def ink(background: Colour) -> Colour:
    """Black or white, whichever stands out more: never less than 4.5 to 1."""
    return (0, 0, 0) if luminance(background) > 0.179 else (255, 255, 255)


def luminance(rgb: Colour) -> float:
    """As WCAG defines it, 0 to 1."""
    r, g, b = (v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _even(t: float) -> Colour:
    """From nearly white over teal to deep violet, in Oklab (Ottosson 2020), whose lightness falls in equal steps."""
    light, chroma, hue = 0.97 - 0.69 * t, 0.13 * math.sin(math.pi * (0.06 + 0.76 * t)), math.radians(190 + 105 * t)
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    red, green, blue = (_encoded(min(max(v, 0.0), 1.0)) for v in linear)
    return red, green, blue


def _encoded(linear: float) -> int:
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


@cache
def _font(size: int, file: str = "") -> Any:
    """A font by its file, or Pillow's own; None where the system has none of that name."""
    if file:
        try:
            return ImageFont.truetype(file, size)
        except OSError:
            return None
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1: one small font
        return ImageFont.load_default()


def _font_for(text: str, size: int) -> Any:
    """The first font that has every letter of the text, or None."""
    return next((font for font in (_font(size, file) for file in ("", *FONTS)) if font and _has(font, text)), None)


def _has(font: Any, text: str) -> bool:
    try:
        missing = bytes(font.getmask(NOWHERE))
        return all(bytes(font.getmask(letter)) != missing for letter in text if not letter.isspace())
    except UnicodeEncodeError:  # the small font
        return False


class _Page:
    """A card that is drawn from top to bottom; every method returns where it ended."""

    def __init__(self, width: int, count: int):
        self.image = Image.new("RGB", (width, 2 * width + 100 * count), CARD)
        self.draw = ImageDraw.Draw(self.image)

    def finished(self, height: int) -> Image.Image:
        card = self.image.crop((0, 0, self.image.width, height))
        ImageDraw.Draw(card).rectangle((0, 0, card.width - 1, card.height - 1), outline=LINE)
        return card

    def text(self, at: tuple[int, int], text: str, size: int, fill: Colour = TEXT, anchor: str = "la") -> int:
        font = _font_for(text, size) or _font(size)
        self.draw.text(at, text, fill, font, anchor=anchor if isinstance(font, ImageFont.FreeTypeFont) else None)
        return at[1] + round(1.25 * size)

    def paragraph(self, at: tuple[int, int], text: str, width: int, size: int = 20) -> int:
        x, y = at
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and _font(size).getlength(longer) > width:
                y, longer = self.text((x, y), line, size, QUIET), word
            line = longer
        return self.text((x, y), line, size, QUIET)

    def name(self, number: int, name: str, size: int, width: int) -> Image.Image:
        """A concept's name as a strip of its own: shortened where it is long, its number where no font has its letters."""
        font = _font_for(name, size)
        text = name if font else f"no. {number + 1}"
        font = font or _font(size)
        while len(text) > 2 and font.getlength(text) > width:
            text = text[:-2].rstrip() + "\u2026"
        strip = Image.new("RGB", (math.ceil(font.getlength(text)), round(1.3 * size)), CARD)
        ImageDraw.Draw(strip).text((0, 0), text, TEXT, font)
        return strip

    def heatmap(self, at: tuple[int, int], names: Sequence[str], values: Sequence[Sequence[float]], cell: int) -> int:
        """Rows and columns in the order of `names`; what a concept is to itself says nothing and stays grey."""
        size = min(22, cell - 2)
        strips = [self.name(number, name, size, LABEL - 16) for number, name in enumerate(names)]
        x0, y0 = at[0] + LABEL, at[1] + max(strip.width for strip in strips) + 10
        gap = 1 if cell > 24 else 0
        for i, (strip, row) in enumerate(zip(strips, values, strict=True)):
            middle = (cell - strip.height) // 2
            self.image.paste(strip, (x0 - 10 - strip.width, y0 + i * cell + middle))
            upright = strip.transpose(Image.Transpose.ROTATE_90)
            self.image.paste(upright, (x0 + i * cell + middle, y0 - 10 - upright.height))
            for j, value in enumerate(row):
                box = (x0 + j * cell, y0 + i * cell, x0 + (j + 1) * cell - 1 - gap, y0 + (i + 1) * cell - 1 - gap)
                fill = GREY if i == j else colour(value)
                self.draw.rectangle(box, fill)
                if cell >= 56 and i != j:
                    self.text((box[0] + cell // 2, box[1] + cell // 2), percent(value), 18, ink(fill), "mm")
        end = cell * len(names)
        self.draw.rectangle((x0 - 1, y0 - 1, x0 + end, y0 + end), outline=LINE)
        return y0 + end

    def legend(self, at: tuple[int, int]) -> int:
        (x, y), length, height = at, MAP_SIDE - 10, 26
        x += LABEL
        for step in range(length):
            self.draw.line((x + step, y, x + step, y + height), colour(LEAST * (MOST / LEAST) ** (step / (length - 1))))
        self.draw.rectangle((x - 1, y - 1, x + length, y + height + 1), outline=LINE)
        decades = round(math.log10(MOST / LEAST))
        for step in range(decades + 1):
            share = LEAST * 10**step
            tick = x + round(step / decades * (length - 1))
            self.draw.line((tick, y + height, tick, y + height + 8), QUIET)
            words = {0: f"{100 * share:g} % or less", decades: f"{100 * share:g} % or more"}.get(step, f"{100 * share:g} %")
            self.text((tick, y + height + 12), words, 18, QUIET, "ma")
        self.draw.rectangle((x + length + 120, y, x + length + 120 + height, y + height), GREY)
        self.text((x + length + 156, y + height // 2), "itself", 18, QUIET, "lm")
        return y + height + 40

    def capacity(self, at: tuple[int, int], report: Mapping[str, Any], width: int) -> int:
        x, y = at
        y = self.text((x, y), "Capacity", 32)
        y = self.paragraph((x, y + 6), "Directions that the library's concepts take up, by kind and width of layers.", width)
        y += 20
        for group in report["capacity"]["groups"]:
            layers = "1 layer" if group["layers"] == 1 else f"{group['layers']} layers"
            self.text((x, y), f"{group['kind']}, {group['width']} wide, {layers}", 20)
            room = f"room for {group['room']} more" if group["room"] else "full"
            self.text((x + width, y), f"{percent(group['used'])}, {room}", 20, TEXT, "ra")
            y = self.bar((x, y + 28), width, 18, [(group["used"], BAR)]) + 18
        shared = [entry for entry in report["concepts"] if entry["full_layers"]]
        if shared:
            most = max(len(entry["full_layers"]) for entry in shared)
            told = f"{len(shared)} of these concepts found up to {most} layers full and share them softly."
            y = self.paragraph((x, y), told, width)
        return y

    def forgetting(self, at: tuple[int, int], report: Mapping[str, Any], width: int) -> int:
        x, y = at
        entries = report["concepts"]
        certain = percent(1 - report["delta"])
        y = self.text((x, y), "Forgetting", 32)
        about = (
            "What all the others together change in the layers' output on a concept's own pictures, as a share of that "
            f"output: expected (dark), and its bound for {certain} of such inputs (light)."
        )
        y = self.paragraph((x, y + 6), about, width) + 20
        shares = [(entry["disturbance_of_output"], entry["disturbance_bound_of_output"]) for entry in entries]
        most = max((bound for _, bound in shares if bound), default=0.0)
        most = max(most, LEAST)
        columns = math.ceil(len(entries) / ROWS)
        high = math.ceil(len(entries) / columns)
        step, size = (36, 20) if columns == 1 else (24, 16)
        wide = (width - (columns - 1) * 40) // columns
        figures = 200 if columns == 1 else 150
        for number, (entry, (expected, bound)) in enumerate(zip(entries, shares, strict=True)):
            left, top = x + number // high * (wide + 40), y + number % high * step
            strip = self.name(number, entry["name"], size, LABEL - 16)
            self.image.paste(strip, (left + LABEL - 16 - strip.width, top))
            if expected is None or bound is None:
                self.text((left + LABEL, top), "no figure", size, QUIET)
                continue
            self.bar((left + LABEL, top + 2), wide - LABEL - figures, step - 14, [(bound / most, PALE), (expected / most, BAR)])
            self.text((left + wide, top), f"{percent(expected)}, at most {percent(bound)}", size - 2, TEXT, "ra")
        return y + high * step

    def bar(self, at: tuple[int, int], width: int, height: int, parts: Sequence[tuple[float, Colour]]) -> int:
        """Shares of `width`, the longest first."""
        x, y = at
        self.draw.rectangle((x, y, x + width - 1, y + height - 1), (244, 245, 247))
        for share, fill in parts:
            if share > 0:
                self.draw.rectangle((x, y, x + max(1, round(share * width)) - 1, y + height - 1), fill)
        return y + height


BAR, PALE = _even(0.8), _even(0.3)
