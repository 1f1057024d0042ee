"""Writes docs/models.md: every model family that the tests can make, and what was seen when it was taught.

    .venv/bin/python -m tools.models [FAMILY ...]

Each is tried in a ComfyUI of its own (tests/comfyui/hostscripts/families.py). What was seen is kept in docs/models.json, so
some can be tried anew without the others. Takes some minutes for all.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.families import NAMES, QUANTISED
from tests.support.hosts import find_host, run_in_host

DOCS = Path(__file__).parents[1] / "docs"
SEEN = DOCS / "models.json"
EXPORTS = ("comfyui", "kohya", "diffusers")
ROUNDED = 1e-3  # an export further off than this was rounded by the host's own loader
HEAD = """# Models

Written by `python -m tools.models`; not edited by hand. {status} of {count} work, tried in ComfyUI {host} on a CPU with torch
{torch}.

**How they were tried.** Each is a tiny random instance of ComfyUI's own class of that model: two blocks or so, random weights,
random vectors in place of most text encoders and a fixed random matrix in place of most VAEs. It is taught one concept for 20
steps, which is applied, exported and taken off again. So this page says that the parts fit each other, not how well a model
with real weights learns, nor what it takes to hold it.

**Works** means: the loss on the training pictures falls; what is applied, in the weights or beside them, is what was taught (to
1e-4); gradient checkpointing changes nothing (to 1e-5); afterwards the model gives the very same bits as before. *Layers* are
those that are taught. *Left out* are those that have no part in the result, such as what the last block makes of the text.
**Exports**: LoRA files in the names of ComfyUI, kohya and diffusers that ComfyUI's own loader reads completely; where a format
has no names for a family, the concept's own file does. **Regions**: whether *Concept Region* knows the model's tokens.

| Family | | Layers | Left out | Exports | Regions | Note |
|---|---|---|---|---|---|---|
"""


def row(name: str, seen: dict[str, Any]) -> str:
    if "failed" in seen:
        return f"| {name} | **does not work** | | | | | {seen['failed'].partition(' (')[0]} |"
    found = [kind for kind in EXPORTS if seen["exports"][kind] is not None]
    off, note = max((error for error in seen["exports"].values() if error is not None), default=0.0), ""
    if name in QUANTISED and off > ROUNDED:
        note = f"Apply adds beside the layers; a LoRA loader rounds the weights again, {off:.0%} off"
    cells = (
        name,
        "works" if works(seen) else "**differs**",
        str(seen["layers"]),
        str(seen["left_out"] or ""),
        ", ".join(found) or "own file only",
        "yes" if seen["regions"] else "",
        note,
    )
    return f"| {' | '.join(cells)} |"


def works(seen: dict[str, Any]) -> bool:
    return bool(
        "failed" not in seen
        and seen["finite"]
        and seen["with_concept"] < seen["bare"]
        and max(seen["applied_error"], seen["beside_error"]) <= 1e-4
        and seen["checkpointing_error"] <= 1e-5
        and seen["removed_exactly"]
        and seen["own_weights"]
        and not seen["hooks_left"]
    )


def host_version() -> str:
    found = find_host()
    assert found is not None
    text = (found[0] / "comfyui_version.py").read_text(encoding="utf-8")
    return text.partition('__version__ = "')[2].partition('"')[0]


def torch_version() -> str:
    found = find_host()
    assert found is not None
    asked = [str(found[1]), "-c", "import torch; print(torch.__version__)"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def main(names: list[str]) -> None:
    seen: dict[str, Any] = json.loads(SEEN.read_text(encoding="utf-8")) if SEEN.exists() else {}
    for name in names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            seen |= run_in_host("families.py", folder, name, timeout=1800)
        print(row(name, seen[name]), flush=True)
        ordered = {name: seen[name] for name in NAMES if name in seen}
        SEEN.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    write_page(seen)


def write_page(seen: Mapping[str, Any]) -> None:
    working = sum(map(works, seen.values()))
    head = HEAD.format(status=working, count=len(seen), host=host_version(), torch=torch_version())
    rows = [row(name, seen[name]) for name in NAMES if name in seen]
    (DOCS / "models.md").write_text(head + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
