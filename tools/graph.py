"""A workflow as the editor saves it, made node by node from what a real ComfyUI says of them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import tomllib

from tests.support.hosts import PACK, HostServer

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
GAP, TITLE = 40, 30
PROJECT = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"cnr_id": PROJECT["name"], "ver": PROJECT["version"]}  # by which the host tells what to install


class Graph:
    """A workflow in columns from left to right, nodes of a column from top to bottom."""

    def __init__(self, server: HostServer):
        self.server = server
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []
        self._x = self._y = self._width = 0

    def column(self) -> None:
        self._x, self._y, self._width = self._x + self._width + (GAP if self._width else 0), 0, 0

    def note(self, text: str, size: tuple[int, int]) -> None:
        self._place({"type": "MarkdownNote", "title": "Read me", "inputs": [], "outputs": [], "widgets_values": [text]}, size)
        self.nodes[-1] |= {"color": "#432", "bgcolor": "#653"}

    def add(
        self, kind: str, size: tuple[int, int], inputs: dict[str, Any] | None = None, title: str = "", files: tuple = ()
    ) -> int:
        """A node; an input is a widget's value, or (node, number of the output). Returns its id."""
        info = self.server.get(f"/object_info/{kind}")[kind]
        given, named, values = dict(inputs or {}), {}, []
        slots: list[dict[str, Any]] = []
        number = len(self.nodes) + 1
        for name, type_, about, is_widget, is_optional in entries_of(info):
            slot: dict[str, Any] = {"localized_name": name, "name": name, "type": type_, "link": None}
            if is_optional:
                slot["shape"] = 7
            value = given.pop(name, None)
            if isinstance(value, tuple):
                slot["link"] = self._link(value, number, len(slots))
                value = None
            if is_widget:
                slot["widget"] = {"name": name}
                named[name] = about["default"] if value is None else value
                values.append(named[name])
                if name == "seed" and about.get("control_after_generate") is not False:
                    values.append("fixed")
            slots.append(slot)
        if given:
            raise SystemExit(f"{kind} has no input {', '.join(given)}")
        lists = info["output_is_list"]
        outputs = [
            {"localized_name": name, "name": name, "type": type_, "links": [], **({"shape": 6} if lists[i] else {})}
            for i, (name, type_) in enumerate(zip(info["output_name"], info["output"], strict=True))
        ]
        node = {"type": kind, "inputs": slots, "outputs": outputs, "widgets_values": values, "widgets_values_named": named}
        properties = {"Node name for S&R": kind} | (OURS if kind.startswith("SeqLoRA_") else {})
        if files:
            properties["models"] = [
                {"name": at.partition("/")[2], "url": address, "directory": at.partition("/")[0]} for at, address in files
            ]
        self._place(node | ({"title": title} if title else {}) | {"properties": properties}, size)
        return number

    def connect(self, source: tuple[int, int], node: int, name: str) -> None:
        """To a node that lies before its source."""
        slots = self.nodes[node - 1]["inputs"]
        place = next(at for at, slot in enumerate(slots) if slot["name"] == name)
        slots[place]["link"] = self._link(source, node, place)

    def _place(self, node: dict[str, Any], size: tuple[int, int]) -> None:
        number = len(self.nodes) + 1
        placed = {"id": number, "pos": [self._x, self._y], "size": list(size), "flags": {}, "order": number - 1, "mode": 0}
        self.nodes.append(placed | {"properties": {}} | node)
        self._y, self._width = self._y + size[1] + GAP + TITLE, max(self._width, size[0])

    def _link(self, source: tuple[int, int], node: int, slot: int) -> int:
        number = len(self.links) + 1
        output = self.nodes[source[0] - 1]["outputs"][source[1]]
        output["links"].append(number)
        self.links.append([number, *source, node, slot, output["type"]])
        return number

    def save(self, file: Path) -> None:
        workflow = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, file.stem)),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        file.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")


def entries_of(info: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], bool, bool]]:
    """Of every input: name, type, options, whether it is a widget, whether it may be left out; sockets first, as the editor
    saves them."""
    found = []
    for group in ("required", "optional"):
        for name, entry in info["input"].get(group, {}).items():
            about = entry[1] if len(entry) > 1 else {}
            type_, choices = ("COMBO", entry[0]) if isinstance(entry[0], list) else (entry[0], about.get("options", []))
            about = {"default": next(iter(choices), "")} | about  # as the editor has it
            found.append((name, type_, about, type_ in WIDGETS and not about.get("forceInput"), group == "optional"))
    return sorted(found, key=lambda entry: entry[3])
