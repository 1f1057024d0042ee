"""The tables of help pages that say what the code knows better: settings, and what suits which model.

A page marks where they go: `<!-- settings -->` ... `<!-- /settings -->`, and `families` likewise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from seqlora.families import BASIS_SHARE, FAMILIES
from seqlora.settings import LIBRARY_OPTIONS, OPTIONS, Option

DEFAULT = {"en": "Default", "zh": "\u9ed8\u8ba4"}
SWITCH = {"en": ("off", "on"), "zh": ("\u5173", "\u5f00")}
HEAD = {"en": ("Input", "What it is"), "zh": ("\u8f93\u5165", "\u8bf4\u660e")}
FAMILY_HEAD = {
    "en": ("Model", "Picture size", "steps", "batch_size", "learning_rate", "basis_learning_rate", ""),
    "zh": (
        "\u6a21\u578b",
        "\u56fe\u50cf\u5c3a\u5bf8",
        "\u6b65\u6570",
        "\u6279\u6b21\u5927\u5c0f",
        "\u5b66\u4e60\u7387",
        "\u57fa\u7684\u5b66\u4e60\u7387",
        "",
    ),
}
MEASURED = {"en": ("a starting point", "measured"), "zh": ("\u8d77\u70b9", "\u5b9e\u6d4b")}


def renewed(page: str, words: Mapping[str, Any], language: str) -> str:
    """The page with its tables as they must be. `words` are the node's in this language, as in nodeDefs.json."""
    for name, table in (("settings", settings_table(words.get("inputs", {}), language)), ("families", family_table(language))):
        between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", re.DOTALL)
        page = between.sub("\n" + table.replace("\\", r"\\") + "\n", page)
    return page


def settings_table(inputs: Mapping[str, Mapping[str, str]], language: str) -> str:
    """Of those inputs that are settings."""
    options, rows = OPTIONS | LIBRARY_OPTIONS, []
    for name, words in inputs.items():
        if name in options:
            called = "" if language == "en" else f"{words['name']}\u3002"
            rows.append((f"`{name}`", f"{called}{words['tooltip']}{_default(options[name], language)}"))
    return _table(HEAD[language], rows)


def family_table(language: str) -> str:
    rows = []
    for family in FAMILIES.values():
        rates = (family.learning_rate, family.learning_rate * BASIS_SHARE)
        numbers = (family.resolution, family.steps, family.batch_size, *(f"{rate:g}" for rate in rates))
        rows.append((family.title, *map(str, numbers), MEASURED[language][family.measured]))
    return _table(FAMILY_HEAD[language], rows)


def _default(option: Option, language: str) -> str:
    if option.default == "":
        return ""
    shown = f"{option.default:g}" if isinstance(option.default, float) else str(option.default)
    if option.choices:
        shown = f"`{option.default}`"
    if isinstance(option.default, bool):
        shown = SWITCH[language][option.default]
    return f" {DEFAULT[language]}: {shown}." if language == "en" else f"{DEFAULT[language]}\uff1a{shown}\u3002"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("|" + "|".join(line) + "|" if line == lines[1] else f"| {' | '.join(line)} |" for line in lines)
