"""JSON from anywhere: bounded in size, depth and the length of its numbers."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_VALUES = 500_000  # numbers, texts, lists and so on in one JSON text


def parse_json(data: bytes | bytearray | str) -> Any:
    """JSON whose size in memory is bounded by that of the text. Raises ValueError."""
    text = data if isinstance(data, str) else data.decode()
    if sum(text.count(mark) for mark in ",[{") > MAX_VALUES:
        raise ValueError("too many values")
    try:
        found = json.loads(text, parse_int=_integer, parse_float=_fraction)
        if re.search(r"\\u[dD]", text):  # perhaps half a character, which nothing can print or write again
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integer(text: str) -> int:
    return int(_short(text, 19))  # of 64 bits; reading a million digits would take minutes


def _fraction(text: str) -> float:
    return float(_short(text, 40))


def _short(text: str, digits: int) -> str:
    if len(text) > digits:
        raise ValueError("a number is too long")
    return text
