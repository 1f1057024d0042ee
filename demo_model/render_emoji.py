"""Render Noto emoji into the pictures and captions that the demo model is made of.

Needs the Debian package fonts-noto-color-emoji. Writes, under --out, `glyphs.npy` (all emoji, for the training scripts; not
committed) and, with --ship, what the software ships: `seqlora/demo/emoji.json` (names, class words, base or held out) and
`seqlora/demo/concepts.png` (the held-out emoji, so that the demo needs no font).
"""

import argparse
import json
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
GLYPH = 72  # pixels on a side, RGBA
HELD_OUT = 120
BASE = 600
DEMO = Path(__file__).parents[1] / "seqlora" / "demo"

# Near-duplicates and text-like signs: nobody can tell them apart at 64 pixels.
SKIP = re.compile(
    r"clock face|fitzpatrick|component|square|circle|triangle|arrow|button|symbol|sign\b|keyboard with|moon|heart|pointing|"
    r"hand\b|hands|fist|sagittarius|aries|taurus|gemini|cancer|leo\b|virgo|libra|scorpius|capricorn|aquarius|pisces|ophiuchus|"
    r"suit$|mark$|ornament|latin|curly|heavy|mailbox|envelope|no one|bell with|speaker|antenna|mobile phone|oncoming|"
    r"cat face with|smiling face with open mouth|kissing face|man\b|woman\b|men\b|women\b|person|pregnant|people|busts|"
    r"railway car|light rail|tram car|high-speed|page|disc$|hourglass with|banknote|book$|file folder|traffic light|"
    r"medal$|level slider|snowman without|stop$|record$|bar$|prohibited|non-potable|lowered|diamond|restroom|closet|"
    r"baggage|customs|luggage$|passport|potable|sparkle$|sunset|sunrise$|linked|house buildings|house with|fitness"
)
RANGES = [  # first match wins
    ("animal", "1f400-1f43f 1f54a 1f577 1f980-1f9ae 1fab0-1fab3"),
    ("food", "1f32d-1f330 1f336 1f33d 1f345-1f37f 1f950-1f96f 1f9c0-1f9cb 1fad0-1fad9 2615"),
    ("plant", "1f331-1f344 1f490 1f940 1fab4-1fab8 2618"),
    ("person", "1f464-1f487 1f48f-1f492 1f3c2-1f3cc 1f574-1f57a 1f645-1f64f 1f930-1f93e 1f9b8-1f9b9 1f9cc-1f9df 1fac2-1fac5"),
    ("face", "1f600-1f644 1f910-1f92f 1f970-1f97a 1f9d0 1fae0-1fae5 2639-263a"),
    ("vehicle", "1f680-1f6a4 1f6b2 1f6e5-1f6fc 26f4-26f5 2708 1f3cd-1f3ce"),
    ("place", "1f3d4-1f3f0 1f5fb-1f5fe 26e9-26f2 26fa 1f30b 1f303-1f309 1f54b-1f54d 1f6d5-1f6d6"),
    ("object", "0-1fffff"),
]


def class_word(codepoint: int) -> str:
    for word, ranges in RANGES:
        for part in ranges.split():
            low, _, high = part.partition("-")
            if int(low, 16) <= codepoint <= int(high or low, 16):
                return word
    raise AssertionError


def render(codepoint: int, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """One emoji, cropped to its ink and centred on a transparent square; None where the font has no colour glyph."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), chr(codepoint), font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None or not np.asarray(canvas)[..., :3].any():
        return None
    ink = canvas.crop(box)
    square = Image.new("RGBA", (max(ink.size),) * 2, (0, 0, 0, 0))
    square.paste(ink, ((square.width - ink.width) // 2, (square.height - ink.height) // 2))
    return square.resize((GLYPH, GLYPH), Image.Resampling.LANCZOS)


def choose(font: ImageFont.FreeTypeFont) -> tuple[list[dict], np.ndarray]:
    found = []
    for codepoint in [*range(0x231A, 0x2800), *range(0x2B00, 0x2C00), *range(0x1F300, 0x1FB00)]:
        name = unicodedata.name(chr(codepoint), "").lower()
        if not name or len(name.split()) > 4 or SKIP.search(name):
            continue
        word = class_word(codepoint)
        glyph = render(codepoint, font) if word != "person" else None
        if glyph is not None:
            found.append({"codepoint": codepoint, "name": name.replace("-", " "), "class_word": word, "glyph": glyph})
    rng = random.Random(0)
    rng.shuffle(found)
    # A held-out concept is a thing with a look of its own; yellow faces and signs are not.
    able = [e for e in found if e["class_word"] in ("animal", "food", "plant", "vehicle", "place", "object")]
    held = {e["codepoint"] for e in able[:HELD_OUT]}
    base = [e for e in found if e["codepoint"] not in held][:BASE]
    chosen = base + [e for e in found if e["codepoint"] in held]
    glyphs = np.stack([np.asarray(e.pop("glyph")) for e in chosen])
    for i, entry in enumerate(chosen):
        entry["held_out"] = i >= len(base)
    return chosen, glyphs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/emoji"))
    parser.add_argument("--ship", action="store_true")
    args = parser.parse_args()
    entries, glyphs = choose(ImageFont.truetype(FONT, 109))
    args.out.mkdir(parents=True, exist_ok=True)
    np.save(args.out / "glyphs.npy", glyphs)
    print(f"{sum(not e['held_out'] for e in entries)} base emoji, {sum(e['held_out'] for e in entries)} held out")
    if args.ship:
        (DEMO / "emoji.json").write_text(json.dumps(entries, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        held = glyphs[[e["held_out"] for e in entries]]
        columns = 12
        sheet = Image.new("RGBA", (columns * GLYPH, -(-len(held) // columns) * GLYPH), (0, 0, 0, 0))
        for i, glyph in enumerate(held):
            sheet.paste(Image.fromarray(glyph), (i % columns * GLYPH, i // columns * GLYPH))
        sheet.save(DEMO / "concepts.png", optimize=True)


if __name__ == "__main__":
    main()
