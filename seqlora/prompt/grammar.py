"""`@name` in prompts: what a prompt says to the text encoder, and which concepts it switches on.

    a photo of @rex beside @"red kettle":0.8      ->  "a photo of zorv dog beside vosk kettle",  rex: 1, red kettle: 0.8

A concept is named by `@` and its name, in quotes where it is not plain otherwise where the name ends, and perhaps `:strength`.
It stands for the concept's trigger and class word. A trigger that is written out selects its concept too. `\\@` is a plain
sign, and so is one that follows a letter or stands alone. Everything else, such as `(word:1.2)`, `embedding:name` or `{a|b}`,
belongs to the host and passes through as it is; in `(@rex:1.2)` the number is the host's weight, in `(@rex:0.8:1.2)` the
second one.

A concept's words are text: where the host reads parentheses as weights, those of a trigger get a backslash in front, also where
it is written out.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import SeqLoRAError
from ..io.text import as_text, check_characters, literal, unspaced, word_pattern
from ..library.manifest import Record
from ..lora.compose import MAX_STRENGTH, STRENGTHS

_NUMBER = re.compile(r":\s?([+-]?(?:\d+\.?\d*|\.\d+))(?![\w.])", re.ASCII)
_QUOTED = re.compile(r'"([^"\n]*)"')
_WORD = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is meant."""

    text: str  # for the text encoder
    strengths: dict[str, float] = field(default_factory=dict)  # of the concepts that it names, in the library's order


def read_prompt(text: str, records: Sequence[Record], weights: bool = False) -> Prompt:
    """What a prompt says and which of the library's concepts it switches on. With `weights` it is for a host that reads
    parentheses as weights; without, all of them are text, also those that have a backslash in front.

    Raises SeqLoRAError for a name that no concept has (with the nearest known one), a strength that cannot be, two strengths of
    one concept, or a written trigger that several concepts share.
    """
    check_characters(text, "prompt")
    text = unicodedata.normalize("NFC", text)
    parts: list[str] = []
    plain: list[str] = []  # what is left for triggers, a line break in place of each mention
    named: dict[str, float | None] = {}
    position = depth = 0
    while position < len(text):
        sign = text[position]
        if text.startswith("\\@", position):
            _add(parts, plain, "@")
            position += 2
            continue
        mention = _mention(text, position, depth, records) if sign == "@" else None
        if mention is None:
            depth = _depth(text, position, depth)
            _add(parts, plain, sign)
            position += 1
            continue
        record, strength, position = mention
        if named.get(record.name) not in (None, strength) and strength is not None:
            raise SeqLoRAError(f"The prompt gives @{record.name} two strengths", "keep one of them")
        named[record.name] = named.get(record.name) if strength is None else strength
        parts.append(literal(record.subject) if weights else record.subject)
        plain.append("\n")
    said = "".join(parts)
    for record in _triggered(as_text("".join(plain)), records):
        named.setdefault(record.name, None)
        if weights:
            said = word_pattern(record.trigger).sub(lambda written: literal(written[0]), said)
    strengths = {r.name: 1.0 if named[r.name] is None else float(named[r.name] or 0) for r in records if r.name in named}
    return Prompt(said if weights else as_text(said), strengths)


def _add(parts: list[str], plain: list[str], sign: str) -> None:
    parts.append(sign)
    plain.append(sign)


def _depth(text: str, position: int, depth: int) -> int:
    """How many of the host's parentheses are open after this sign; one with a backslash in front is text."""
    if position and text[position - 1] == "\\":
        return depth
    return depth + 1 if text[position] == "(" else max(0, depth - 1) if text[position] == ")" else depth


def _mention(text: str, at: int, depth: int, records: Sequence[Record]) -> tuple[Record, float | None, int] | None:
    """The concept that the `@` at this place names, its strength if one is given, and where the mention ends."""
    if at and (text[at - 1].isalnum() or text[at - 1] in "_@"):
        return None
    start = at + 1
    quoted = _QUOTED.match(text, start)
    if quoted:
        record, end = _find(quoted[1].strip(), records), quoted.end()
    else:
        found = [r for r in records if _is_at(text, start, r.name)]
        word = _WORD.match(text, start)
        if not found and word is None:
            return None
        record = max(found, key=lambda r: len(r.name)) if found else _find(word[0] if word else "", records)
        end = start + len(record.name)
    number = _NUMBER.match(text, end)
    # `(@rex:1.2)`: the last number before the parenthesis is the host's.
    if number is None or (depth and text[number.end() :].lstrip(" ").startswith(")")):
        return record, None, end
    strength = float(number[1])
    if abs(strength) > MAX_STRENGTH:
        raise SeqLoRAError(f"The strength {number[1]} of @{record.name} is too large", f"use one {STRENGTHS}")
    return record, strength, number.end()


def _is_at(text: str, start: int, name: str) -> bool:
    """Whether this name stands here, and ends where a word does."""
    end = start + len(name)
    follows = text[end : end + 1]
    return text[start:end].casefold() == name.casefold() and (not (follows.isalnum() or follows == "_") or unspaced(follows))


def _find(name: str, records: Sequence[Record]) -> Record:
    for record in records:
        if record.name.casefold() == name.casefold():
            return record
    names = {record.name.casefold(): record.name for record in records}
    if not names:
        raise SeqLoRAError(
            f"There is no concept '{name}': the library has none yet", "teach one, or write \\@ for a plain sign"
        )
    nearest = difflib.get_close_matches(name.casefold(), names, 1, 0.5)
    meant = f"did you mean @{names[nearest[0]]}?" if nearest else f"it has: {', '.join(names.values())}"
    raise SeqLoRAError(f"There is no concept '{name}' in this library", meant)


def _triggered(text: str, records: Sequence[Record]) -> list[Record]:
    """Concepts whose trigger is written out. Longer ones are looked for first and use up their place."""
    found = []
    by_trigger: dict[str, list[Record]] = {}
    for record in records:
        by_trigger.setdefault(unicodedata.normalize("NFC", record.trigger).casefold(), []).append(record)
    for trigger in sorted(by_trigger, key=len, reverse=True):
        text, count = word_pattern(trigger).subn("\n", text)
        if not count:
            continue
        sharing = [record.name for record in by_trigger[trigger]]
        if len(sharing) > 1:
            raise SeqLoRAError(
                f"'{trigger}' is the trigger of {' and '.join(sharing)}", f"write @{sharing[0]} or @{sharing[1]}"
            )
        found += by_trigger[trigger]
    return found
