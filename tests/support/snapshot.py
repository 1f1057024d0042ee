"""What a ComfyUI says of this pack's nodes, for browser tests without one. `python -m tools.update_locales` writes it anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("object_info.json")


def snapshot_of(object_info: dict[str, Any]) -> dict[str, Any]:
    """Node id -> what the editor is told of it, without what depends on the machine."""
    nodes = {name: info for name, info in object_info.items() if name.startswith("SeqLoRA_")}
    nodes["SeqLoRA_LoadLibrary"]["input"]["required"]["name"][1]["options"] = []
    nodes["SeqLoRA_LoadPictures"]["input"]["required"]["folder"][1]["options"] = [""]
    nodes["SeqLoRA_AdoptLoRA"]["input"]["required"]["lora"][1]["options"] = []
    return nodes
