"""The templates as one sees them when they are opened: laid out from left to right, nothing over something else, their notes
readable in both renderers."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.support.editor import Editor

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
# Of all nodes with their titles: left, top, right, bottom in the graph's units, as drawn.
BOXES = """() => Object.fromEntries(app.graph.nodes.map((node) => {
    const drawn = document.querySelector(`[data-node-id="${node.id}"]`)
    const [left, top] = [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT]
    if (!drawn) return [node.id, [left, top, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]]
    const { width, height } = drawn.getBoundingClientRect()
    return [node.id, [left, top, left + width / app.canvas.ds.scale, top + height / app.canvas.ds.scale]]
}))"""


@each
def test_wires_run_from_left_to_right_and_notes_use_no_code(path: Path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link in workflow["links"]:
        source, target = nodes[link[1]], nodes[link[3]]
        assert source["pos"][0] <= target["pos"][0], (source["type"], target["type"])
    for node in nodes.values():
        if node["type"].endswith("Note"):
            assert not any("`" in text for text in node["widgets_values"])  # blue on brown in Nodes 2.0


def wiring(workflow: dict[str, Any]) -> dict[tuple[int, str], Any]:
    """What every input of every node is given: a value, or (node, output)."""
    nodes, origin = workflow["nodes"], {link[0]: (link[1], link[2]) for link in workflow["links"]}
    given = {(node["id"], name): value for node in nodes for name, value in node.get("widgets_values_named", {}).items()}
    return given | {(n["id"], slot["name"]): origin[slot["link"]] for n in nodes for slot in n["inputs"] if slot["link"]}


@each
@pytest.mark.host
def test_the_editor_reads_it_as_it_was_written_and_saves_it_so(host_editor: Editor, path: Path):
    written = json.loads(path.read_text(encoding="utf-8"))
    host_editor.load(written)
    saved = host_editor.saved()
    assert wiring(written).items() <= wiring(saved).items()
    host_editor.load(saved)
    assert host_editor.saved() == saved


@each
@pytest.mark.host
def test_no_node_lies_over_another_nor_under_the_minimap(host_editor: Editor, path: Path):
    page = host_editor.page
    host_editor.set("Comfy.Minimap.Visible", True)
    host_editor.load(json.loads(path.read_text(encoding="utf-8")))
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")  # as a template is opened
    page.wait_for_timeout(1500)
    map_box = page.locator(".litegraph-minimap").bounding_box()
    boxes = page.evaluate(BOXES)
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (one, other)
    for node, (_, _, right, bottom) in boxes.items():
        x, y = page.evaluate("(place) => app.canvasPosToClientPos(place)", [right, bottom])
        assert x <= map_box["x"] or y <= map_box["y"], node
    host_editor.set("Comfy.Minimap.Visible", False)
