"""Text from files and from other programs, as a text encoder should see it."""

from __future__ import annotations

import codecs
import re
import unicodedata

from ..errors import SeqLoRAError

# Scripts that put no spaces between words: there a word is looked for as text.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# A byte order mark that was read as text, and what has no width: a text encoder makes tokens of them. Joiners stay, since some
# scripts and emoji need them.
_UNSEEN = re.compile("[\ufeff\u200b\u2060\u00ad]")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def clean_text(text: str) -> str:
    """In NFC, without invisible characters, trimmed; line breaks become spaces."""
    return " ".join(unicodedata.normalize("NFC", _UNSEEN.sub("", text)).split())


def decode_text(data: bytes, what: str) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 with one. Raises SeqLoRAError, naming `what`, for anything else."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise SeqLoRAError(
            f"{what} cannot be read as text (byte {error.start} is no UTF-8)", "save it as UTF-8 text"
        ) from error


def check_characters(text: str, what: str) -> None:
    """Raises SeqLoRAError for half a character (of an emoji that was cut, say), which nothing can encode."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise SeqLoRAError(f"The {what} holds half a character, of an emoji perhaps", "type it anew")


def word_pattern(word: str) -> re.Pattern[str]:
    """Finds a trigger as a word of its own, `_` being no letter; as text where its script puts no spaces between words."""
    before = "" if unspaced(word[:1]) else r"(?<![^\W_])"
    after = "" if unspaced(word[-1:]) else r"(?![^\W_])"
    return re.compile(before + re.escape(word) + after, re.IGNORECASE)


def unspaced(character: str) -> bool:
    return bool(_UNSPACED.fullmatch(character))
