"""Names of libraries and concepts: what a person may call them, and what they are called on disk."""

from __future__ import annotations

import re
import unicodedata

from ..errors import SeqLoRAError

MAX_LENGTH = 64  # characters
MAX_BYTES = 240  # in UTF-8; a file name may have 255
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)\s*(\..*)?", re.IGNORECASE)
# What some system takes for the end of a name, and characters that look like a slash, a backslash or a colon.
_FORBIDDEN = re.compile('[/\\\\:*?"<>|#\u2044\u2215\u2571\u27cb\u29f8\u2216\u2572\u27cd\u29f5\u29f9\u2236\ua789]')
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control and formatting characters, half a character, line ends
_JOINERS = re.compile("[\u200c\u200d]")  # formatting that some scripts and emoji need; some file systems ignore it


def checked_name(name: str, what: str) -> str:
    """The name, trimmed and NFC-normalised. Raises SeqLoRAError unless it is safe as a file name everywhere."""
    name = unicodedata.normalize("NFC", name).strip()
    if not _JOINERS.sub("", name):
        raise SeqLoRAError(f"The {what} is empty", "give it a name")
    if len(name) > MAX_LENGTH or len(name.encode(errors="replace")) > MAX_BYTES:
        raise SeqLoRAError(f"The {what} is {len(name)} characters long", f"use at most {MAX_LENGTH}, fewer if they are emoji")
    plain = _plain(name)
    bad = next((c for c in plain if _FORBIDDEN.match(c) or unicodedata.category(c) in _UNSEEN), None)
    if bad or plain.startswith(".") or plain.endswith((".", " ")) or _RESERVED.fullmatch(plain):
        why = f"contains {bad!r}" if bad else "is no plain name"
        raise SeqLoRAError(f"The {what} {name!r} {why}", "use letters, digits, spaces, dashes and underscores")
    return name


def collision_key(name: str) -> str:
    """The same for names that a person, or a file system, could take for one another."""
    return _plain(name).casefold()


def _plain(name: str) -> str:
    """In which look-alikes of / . : and the like are those."""
    return unicodedata.normalize("NFKC", _JOINERS.sub("", name))


def slug(name: str) -> str:
    """A short ASCII form for file names; the number beside it makes it unique."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40] or "concept"
