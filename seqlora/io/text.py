"""Text from files and from other programs, as a text encoder should see it."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable

from ..errors import SeqLoRAError

# Scripts that put no spaces between words, or (Hangul) endings on them: there a word is looked for as text.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"  # Chinese, Japanese, Korean
    "\U00020000-\U0003ffff"
)
# A byte order mark that was read as text, what has no width, what turns the direction of writing: a text encoder makes tokens
# of them. Joiners stay, since some scripts and emoji need them.
_UNSEEN = re.compile("[\ufeff\u200b\u2060\u00ad\u180e\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")  # all but what is white space
_MARKS = (  # the longer first: that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def clean_text(text: str) -> str:
    """In NFC, without invisible characters, trimmed; line breaks become spaces."""
    return " ".join(unicodedata.normalize("NFC", _UNSEEN.sub("", _CONTROL.sub(" ", text))).split())


def literal(text: str) -> str:
    r"""As a host must be given it that reads parentheses as weights: each with a backslash in front. Without it
    `miku_(vocaloid)` would lose them, and `(zorv:0)` mean nothing."""
    return re.sub(r"[()]", r"\\\g<0>", text)


def as_text(text: str) -> str:
    r"""The opposite: `\(` and `\)`, as prompts for such a host and some captioners write them, are parentheses."""
    return re.sub(r"\\([()])", r"\1", text)


def decode_text(data: bytes, what: str) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with one. Raises SeqLoRAError, naming `what`, otherwise."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise SeqLoRAError(
            f"{what} cannot be read as text (byte {error.start} is no {encoding.removesuffix('-sig').upper()})",
            "save it as UTF-8 text",
        ) from error
    if "\0" in text:  # UTF-16 without a mark is valid UTF-8 as far as letters of English go
        raise SeqLoRAError(f"{what} cannot be read as text (it holds zero bytes, as UTF-16 does)", "save it as UTF-8 text")
    return text


def check_characters(text: str, what: str) -> None:
    """Raises SeqLoRAError for half a character (of an emoji that was cut, say), which nothing can encode."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise SeqLoRAError(f"The {what} holds half a character, of an emoji perhaps", "type it anew")


def word_pattern(word: str) -> re.Pattern[str]:
    """Finds a trigger as a word of its own, `_` being no letter; as text where its script, or the one beside it, puts no spaces
    between words."""
    letter = rf"[^\W_{_UNSPACED}]"
    before = "" if unspaced(word[:1]) else f"(?<!{letter})"
    after = "" if unspaced(word[-1:]) else f"(?!{letter})"
    return re.compile(before + re.escape(word) + after, re.IGNORECASE)


def split_at_words(text: str, words: Iterable[str]) -> list[tuple[str, str]]:
    """The text in parts: (what stands before a word, the word as given), and at the end (the rest, ""). Longer words first."""
    known = sorted({word.casefold(): word for word in words}.values(), key=len, reverse=True)
    pattern = "|".join(f"({word_pattern(word).pattern})" for word in known)
    parts, start = [], 0
    for found in re.finditer(pattern, text, re.IGNORECASE) if known else ():
        parts.append((text[start : found.start()], known[(found.lastindex or 1) - 1]))
        start = found.end()
    return [*parts, (text[start:], "")]


def unspaced(character: str) -> bool:
    return bool(re.fullmatch(f"[{_UNSPACED}]", character))
