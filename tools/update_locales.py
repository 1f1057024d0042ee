"""Asks a real ComfyUI what this pack's nodes say of themselves, and writes it where tests and translations need it:

tests/support/object_info.json   for the browser tests that run without a ComfyUI
locales/en/nodeDefs.json         the words of the nodes; tells which of them locales/zh/nodeDefs.json lacks
web/docs/                        the tables of settings, in every language

.venv/bin/python -m tools.update_locales
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.hosts import HostServer
from tests.support.snapshot import SNAPSHOT, snapshot_of
from tools.help_tables import renewed

ROOT = Path(__file__).parents[1]
LOCALES = ROOT / "locales"
DOCS = ROOT / "web" / "docs"


def words_of(nodes: dict[str, Any]) -> dict[str, Any]:
    """In the form of nodeDefs.json: what is said of every node, input and output."""
    found = {}
    for name, info in nodes.items():
        groups = (info["input"].get(kind, {}) for kind in ("required", "optional"))
        inputs = {key: {"name": key, "tooltip": entry[1]["tooltip"]} for group in groups for key, entry in group.items()}
        outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
        found[name] = {
            "display_name": info["display_name"],
            "description": info["description"],
            **({"inputs": inputs} if inputs else {}),
            "outputs": {str(i): {"name": key, "tooltip": tooltip} for i, (key, tooltip) in enumerate(outputs)},
        }
    return found


def keys_of(tree: Any, before: str = "") -> set[str]:
    """Paths to all words of a locale file."""
    if isinstance(tree, str):
        return {before}
    return {key for name, below in tree.items() for key in keys_of(below, f"{before}/{name}")}


def main() -> None:
    with HostServer() as server:
        nodes = snapshot_of(server.get("/object_info"))
    SNAPSHOT.write_text(json.dumps(nodes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    words = words_of(nodes)
    file = LOCALES / "en" / "nodeDefs.json"
    file.write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    chinese = json.loads((LOCALES / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    for node in words:
        for page, said in ((DOCS / f"{node}.md", words), (DOCS / node / "zh.md", chinese)):
            if page.is_file() and node in said:
                text, language = page.read_text(encoding="utf-8"), "en" if said is words else "zh"
                page.write_text(renewed(text, said[node], language), encoding="utf-8")
    for key in sorted(keys_of(words) ^ keys_of(chinese)):
        print(f"locales/zh/nodeDefs.json {'lacks' if key in keys_of(words) else 'has too much:'} {key}")


if __name__ == "__main__":
    main()
