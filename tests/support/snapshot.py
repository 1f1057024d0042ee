"""What a ComfyUI says of this pack's nodes, for browser tests without one. Written anew by

python -m tests.browser.snapshot
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.hosts import HostServer

SNAPSHOT = Path(__file__).with_name("object_info.json")


def nodes_of(server: HostServer) -> dict[str, Any]:
    """Node id -> what the editor is told of it, but for the names of libraries."""
    found = {name: info for name, info in server.get("/object_info").items() if name.startswith("SeqLoRA_")}
    found["SeqLoRA_LoadLibrary"]["input"]["required"]["name"][1]["options"] = []
    return found


def main() -> None:
    with HostServer() as server:
        SNAPSHOT.write_text(json.dumps(nodes_of(server), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
