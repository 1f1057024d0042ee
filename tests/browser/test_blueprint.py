"""The subgraph blueprint in the real editor: found by search, added, filled in, run, saved and loaded again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from seqlora.demo.pictures import concept_pictures, held_out_emoji
from seqlora.library.store import Library
from tests.support.editor import Editor
from tests.support.hosts import PACK, HostServer

NAME = "Teach a concept"
FILE = PACK / "subgraphs" / f"{NAME}.json"
VERSION = re.search(r'^version = "(.+)"', (PACK / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE).group(1)
FILLED = {
    "folder": "emoji",
    "library": "from a blueprint",
    "concept_name": "first",
    "trigger": "zobiku",
    "class_word": "thing",
    "steps": 2,
    "batch_size": 2,
    "learning_rate": 0.02,
}


def test_its_nodes_and_inputs_are_those_of_the_snapshot():
    blueprint = json.loads(FILE.read_text(encoding="utf-8"))
    (outside,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert outside["type"] == subgraph["id"] and outside["title"] == subgraph["name"] == NAME
    assert list(outside["widgets_values_named"]) == list(FILLED)
    known = json.loads((PACK / "tests" / "support" / "object_info.json").read_text(encoding="utf-8"))
    for node in (node for node in subgraph["nodes"] if node["type"] in known):
        inputs = known[node["type"]]["input"]
        order = [name for kind in ("required", "optional") for name in inputs.get(kind, {})]
        assert sorted(slot["name"] for slot in node["inputs"]) == sorted(order), node["type"]
        assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == ("seqlora", VERSION), node["type"]
        assert len(node["widgets_values"]) == sum("widget" in slot for slot in node["inputs"]), node["type"]


@pytest.mark.host
def test_the_host_lists_it(server: HostServer):
    entries = server.get("/global_subgraphs")
    (key,) = [key for key, entry in entries.items() if entry["info"]["node_pack"] == "custom_nodes.seqlora"]
    assert entries[key]["name"] == NAME
    assert json.loads(server.get(f"/global_subgraphs/{key}")["data"]) == json.loads(FILE.read_text(encoding="utf-8"))


def put_pictures(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    pictures, _ = concept_pictures(held_out_emoji()[0], 3, 0)
    for number, picture in enumerate(pictures):
        pixels = ((picture.movedim(0, -1) + 1) * 127.5).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.host
@pytest.mark.slow
def test_it_is_found_added_and_teaches(server: HostServer, host_editor: Editor):
    put_pictures(server.input_dir / "emoji")
    page, library = host_editor.page, f"{FILLED['library']} {host_editor.renderer}"
    host_editor.add("SeqLoRA_DemoModel", (-400, 0))
    search = page.get_by_role("combobox", name="Add a node")
    for _ in range(10):  # a busy page takes two clicks that come late for two single ones
        page.mouse.dblclick(900, 700)
        page.wait_for_timeout(2000)
        if search.is_visible():
            break
    search.fill(NAME)
    page.get_by_text(NAME, exact=True).first.wait_for()
    search.press("Enter")
    page.wait_for_function("(name) => window.app.graph.nodes.some((node) => node.title === name)", arg=NAME)
    search.wait_for(state="detached")  # it fades, and would take the click
    page.mouse.click(900, 700)  # until then the new node hangs on the pointer
    page.wait_for_function("() => window.app.canvas.state.ghostNodeId === null")
    page.evaluate(
        """async ([name, values]) => {
            const { app } = window
            await app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions') // the folder is new
            const model = app.graph.nodes.find((one) => one.type === 'SeqLoRA_DemoModel')
            const node = app.graph.nodes.find((one) => one.title === name)
            node.inputs.slice(0, 3).forEach((slot, number) => model.connect(number, node, number))
            for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name]
        }""",
        [NAME, FILLED | {"library": library}],
    )
    saved = host_editor.saved()
    host_editor.load(saved)
    for one in (saved, again := host_editor.saved()):
        for node in one["nodes"]:  # the editor notes anew in what order it would run them, and how large they are
            node.pop("order"), node.pop("size")
    assert again == saved
    if host_editor.renderer == "classic":
        return  # it need not be taught twice
    ended = page.evaluate(
        """() => new Promise((done) => {
            for (const event of ['execution_success', 'execution_error', 'execution_interrupted']) {
                window.app.api.addEventListener(event, ({ detail }) => done({ event, ...detail }), { once: true })
            }
            window.app.queuePrompt(0).then((sent) => sent || done({ event: 'refused' }))
        })"""
    )
    assert ended["event"] == "execution_success", ended
    (taught,) = Library.open(server.models_dir / "seqlora" / library).concepts
    assert (taught.name, taught.trigger, taught.class_word) == ("first", "zobiku", "thing")
    assert (taught.settings["steps"], taught.settings["batch_size"]) == (2, 2)
