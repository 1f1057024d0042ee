"""Names of libraries and concepts: what a person may call them, and what they are called on disk."""

from __future__ import annotations

import re
import unicodedata

from .errors import SeqLoRAError

MAX_LENGTH = 64
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|#]')


def checked_name(name: str, what: str) -> str:
    """The name, trimmed and NFC-normalised. Raises SeqLoRAError unless it is safe as a file name everywhere."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise SeqLoRAError(f"The {what} is empty; give it a name.")
    if len(name) > MAX_LENGTH:
        raise SeqLoRAError(f"The {what} has {len(name)} characters; use at most {MAX_LENGTH}.")
    bad = _FORBIDDEN.search(unicodedata.normalize("NFKC", name))
    if bad or name.startswith(".") or name.endswith(".") or _RESERVED.fullmatch(name):
        why = f"contains {bad.group()!r}" if bad else "is no plain name"
        raise SeqLoRAError(f"The {what} {name!r} {why}; use letters, digits, spaces, dashes and underscores.")
    return name


def slug(name: str) -> str:
    """A short ASCII form for file names; the number beside it makes it unique."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40] or "concept"
