"""Names of libraries and concepts: what a person may call them, and what they are called on disk."""

from __future__ import annotations

import re
import unicodedata

from .errors import SeqLoRAError

MAX_LENGTH = 128  # bytes in UTF-8; a file name may have 255, with what is added to it
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile('[/\\\\:*?"<>|#\u2044\u2215]')  # the last two are slashes to some file systems
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # control characters, half a character, line ends


def checked_name(name: str, what: str) -> str:
    """The name, trimmed and NFC-normalised. Raises SeqLoRAError unless it is safe as a file name everywhere."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise SeqLoRAError(f"The {what} is empty; give it a name.")
    length = len(name.encode(errors="replace"))
    if length > MAX_LENGTH:
        raise SeqLoRAError(f"The {what} is {length} bytes long; use at most {MAX_LENGTH}.")
    plain = unicodedata.normalize("NFKC", name)  # in which look-alikes of / : and the like are those
    bad = next((c for c in plain if _FORBIDDEN.match(c) or unicodedata.category(c) in _UNSEEN), None)
    if bad or plain.startswith(".") or plain.endswith(".") or _RESERVED.fullmatch(plain):
        why = f"contains {bad!r}" if bad else "is no plain name"
        raise SeqLoRAError(f"The {what} {name!r} {why}; use letters, digits, spaces, dashes and underscores.")
    return name


def slug(name: str) -> str:
    """A short ASCII form for file names; the number beside it makes it unique."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40] or "concept"
