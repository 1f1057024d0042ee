"""The concept picker on Apply, in a real Chromium against the real frontend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seqlora.library.store import Library
from seqlora.lora.compose import parse_selection
from tests.support.editor import THEMES, Editor
from tests.support.shelves import shelf
from tests.support.stub import StubServer

APPLY, LOAD, CREATE, TRAIN = (f"SeqLoRA_{kind}" for kind in ("ApplyComposed", "LoadLibrary", "CreateLibrary", "TrainConcept"))
# The editor calls a drag of the mouse one change.
CONNECT = """([from, out, to, into]) => {
    app.canvas.emitBeforeChange()
    app.graph.getNodeById(from).connect(out, app.graph.getNodeById(to), into)
    app.canvas.emitAfterChange()
}"""


@pytest.fixture
def toys(stub: StubServer) -> StubServer:
    stub.libraries = {"toys": shelf("toys", "rex", "bob", "ada"), "empty": shelf("empty")}
    return stub


@pytest.fixture
def apply(toys: StubServer, editor: Editor) -> int:
    """The id of an Apply node whose library is `toys`, with something in its text."""
    load = editor.add(LOAD, (60, 60), name="toys")
    node = editor.add(APPLY, (400, 60), concepts="rex: 0.8  # mine\n# nothing\nbob")
    connect(editor, load, node)
    editor.look_at()
    tile(editor, "ada").wait_for()
    return node


def connect(editor: Editor, source: int, target: int, name: str | int = "library", output: int = 0) -> None:
    editor.page.evaluate(CONNECT, [source, output, target, name])
    editor.settle()


def text(editor: Editor, node: int) -> str:
    return editor.page.evaluate("(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'concepts').value", node)


def tile(editor: Editor, concept: str) -> Any:
    return editor.page.locator(".seqlora-picker").get_by_role("button", name=concept)


def strength(editor: Editor, concept: str) -> Any:
    return editor.page.get_by_label(f"Strength of {concept}")


def shown(editor: Editor) -> dict[str, str | None]:
    """Concept -> strength as the tiles say it; None for off."""
    found = {}
    for item in editor.page.locator(".seqlora-picker li").all():
        on = item.get_by_role("button").get_attribute("aria-pressed") == "true"
        field = item.locator("input")
        assert field.is_visible() == on
        found[item.locator(".seqlora-tile-name").inner_text()] = field.input_value() if on else None
    return found


def wait_for_status(editor: Editor, sentence: str) -> None:
    editor.page.locator(".seqlora-picker-status").get_by_text(sentence).wait_for()


def test_the_tiles_show_what_the_text_says(editor: Editor, apply: int):
    assert shown(editor) == {"rex": "0.8", "bob": "1", "ada": None}
    wait_for_status(editor, "2 of 3 concepts on")
    pictures = editor.page.locator(".seqlora-picker img")
    assert pictures.count() == 2  # rex has none, and an initial in its place
    assert all(picture.evaluate("(image) => image.decode().then(() => true)") for picture in pictures.all())


def test_tiles_change_the_text_by_the_lines_they_must(editor: Editor, apply: int):
    tile(editor, "ada").click()
    assert text(editor, apply) == "rex: 0.8  # mine\n# nothing\nbob\nada"
    tile(editor, "bob").click()
    assert text(editor, apply) == "rex: 0.8  # mine\n# nothing\nada"
    strength(editor, "ada").fill("0.35")
    strength(editor, "ada").press("Enter")
    tile(editor, "rex").click()
    assert text(editor, apply) == "rex: 0  # mine\n# nothing\nada: 0.35"
    tile(editor, "rex").click()
    assert text(editor, apply) == "rex: 0.8  # mine\n# nothing\nada: 0.35"  # as strong as it was
    assert shown(editor) == {"rex": "0.8", "bob": None, "ada": "0.35"}
    strength(editor, "ada").fill("0")
    strength(editor, "ada").press("Enter")
    assert text(editor, apply) == "rex: 0.8  # mine\n# nothing"


def test_everything_by_keyboard(editor: Editor, apply: int):
    tile(editor, "rex").focus()
    press = editor.page.keyboard.press
    press("Space")
    assert shown(editor) == {"rex": None, "bob": "1", "ada": None}
    press("Tab")
    press("Tab")  # from bob's picture to its strength
    press("ArrowDown")
    press("Tab")
    press("Enter")  # ada
    assert text(editor, apply) == "rex: 0  # mine\n# nothing\nbob: 0.95\nada"
    assert shown(editor) == {"rex": None, "bob": "0.95", "ada": "1"}


def test_the_tiles_follow_what_is_typed(editor: Editor, apply: int):
    field = editor.page.locator("textarea").first
    field.fill("*: 0.5\nbob: 0")
    assert shown(editor) == {"rex": "0.5", "bob": None, "ada": "0.5"}
    tile(editor, "bob").click()
    assert field.input_value() == "*: 0.5\nbob: 1"  # as strong as it was when it was on
    field.fill("rex\ncarl")
    assert shown(editor) == {"rex": "1", "bob": None, "ada": None}
    wait_for_status(editor, "Line 2: the library has no concept \u201ccarl\u201d.")
    field.fill("rex: much")
    wait_for_status(editor, "Line 1: write a strength")


def test_each_click_is_one_step_back(editor: Editor, apply: int):
    editor.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    tile(editor, "ada").click()
    tile(editor, "bob").click()
    editor.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    editor.page.wait_for_function("() => app.graph.nodes.some((n) => n.widgets?.[0].value.endsWith?.('bob\\nada'))")
    tile(editor, "ada").wait_for()
    editor.page.wait_for_function("() => document.querySelectorAll('.seqlora-tile[aria-pressed=true]').length === 3")


def test_a_saved_workflow_holds_nothing_of_it(editor: Editor, apply: int):
    before = editor.saved()
    (saved,) = [node for node in before["nodes"] if node["id"] == apply]
    assert saved["widgets_values"] == ["rex: 0.8  # mine\n# nothing\nbob", 1]
    prompt = editor.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert prompt[str(apply)]["inputs"].keys() == {"library", "concepts", "strength"}
    editor.load(before)
    tile(editor, "ada").wait_for()
    assert editor.saved() == before
    tile(editor, "ada").click()
    tile(editor, "ada").click()
    assert editor.saved() == before


def test_the_library_is_found_behind_trainings_and_reroutes(toys: StubServer, editor: Editor):
    create, train = editor.add(CREATE, name="toys"), editor.add(TRAIN, (400, 60))
    second, reroute, node = editor.add(TRAIN, (800, 60)), editor.add("Reroute", (1100, 60)), editor.add(APPLY, (1200, 60))
    editor.look_at(1000)
    wait_for_status(editor, "Connect a library")
    for source, target in ((create, train), (train, second), (reroute, node)):
        connect(editor, source, target)
    wait_for_status(editor, "Which library this is will be known when")
    connect(editor, second, reroute, 0)
    tile(editor, "rex").wait_for()
    editor.page.evaluate(
        """(id) => {
            app.canvas.emitBeforeChange()
            app.graph.getNodeById(id).widgets[0].value = 'empty'
            app.canvas.emitAfterChange()
        }""",
        create,
    )
    wait_for_status(editor, "\u201cempty\u201d has no concepts yet")


def test_the_library_is_found_across_the_edges_of_subgraphs(editor: Editor, apply: int):
    # The opener into a subgraph, with its name as a widget of the subgraph's node.
    inner = editor.page.evaluate(
        """() => {
            const load = app.graph.nodes.find((node) => node.type === 'SeqLoRA_LoadLibrary')
            return Number(app.graph.convertToSubgraph(new Set([load])).node.id)
        }"""
    )
    editor.settle()
    tile(editor, "rex").wait_for()
    editor.page.evaluate(
        """([apply, inner]) => {
            const host = app.graph.getNodeById(inner)
            const load = host.subgraph.nodes[0]
            load.widgets[0].value = 'empty' // what the subgraph's node says counts, once its widget is outside
            const slot = load.inputs.find(({ name }) => name === 'name')
            host.subgraph.addInput('name', slot.type).connect(slot, load)
            host.widgets[0].value = 'toys'
            app.canvas.emitAfterChange()
        }""",
        [apply, inner],
    )
    editor.settle()
    tile(editor, "rex").wait_for()
    # The same subgraph a second time, with another name outside.
    second = editor.page.evaluate(
        """(inner) => {
            const node = LiteGraph.createNode(app.graph.getNodeById(inner).type)
            app.graph.add(node)
            node.widgets[0].value = 'empty'
            return Number(node.id)
        }""",
        inner,
    )
    connect(editor, second, apply)
    wait_for_status(editor, "\u201cempty\u201d has no concepts yet")
    connect(editor, inner, apply)
    # The picker itself into a subgraph.
    editor.page.evaluate(
        """async (apply) => {
            const { node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(apply)]))
            app.canvas.setGraph(node.subgraph)
        }""",
        apply,
    )
    editor.settle()
    tile(editor, "rex").wait_for()
    editor.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


def test_hints_where_there_is_nothing_to_pick(toys: StubServer, editor: Editor):
    create, node = editor.add(CREATE, name="later"), editor.add(APPLY, (400, 60))
    editor.look_at()
    wait_for_status(editor, "Connect a library to pick its concepts")
    connect(editor, create, node)
    wait_for_status(editor, "The library \u201clater\u201d is not on this computer")
    toys.libraries["later"] = shelf("later")
    toys.send("seqlora.library", {"name": "later"})
    wait_for_status(editor, "\u201clater\u201d has no concepts yet")
    toys.libraries["later"] = shelf("later", "eve")
    toys.send("seqlora.library", {"name": "later"})
    tile(editor, "eve").wait_for()
    assert shown(editor) == {"eve": "1"}  # the node's own '*'


def test_a_text_from_elsewhere_is_left_alone(editor: Editor, apply: int):
    words = editor.add(LOAD, (60, 300), name="toys")
    connect(editor, words, apply, "concepts", output=1)
    wait_for_status(editor, "The text comes in through a connection")
    assert tile(editor, "rex").is_disabled()
    assert shown(editor) == dict.fromkeys(["rex", "bob", "ada"])


@pytest.mark.parametrize("theme", THEMES)
def test_accessible(editor: Editor, apply: int, theme: str):
    editor.set("Comfy.ColorPalette", theme)
    assert editor.violations(".seqlora-picker") == []
    editor.set("Comfy.ColorPalette", "dark")


@pytest.mark.host
def test_with_a_real_library(host_editor: Editor, host_pets: Path):
    create, node = host_editor.add(CREATE, (60, 60)), host_editor.add(APPLY, (400, 60), concepts="dog  # woof")
    words = host_editor.add("PrimitiveString", (60, 300), value="small pets")
    connect(host_editor, create, node)
    connect(host_editor, words, create, "name")  # a name that comes in by a connection
    host_editor.look_at()
    tile(host_editor, "cat").click()
    strength(host_editor, "cat").fill("0.5")
    strength(host_editor, "cat").press("Tab")
    assert text(host_editor, node) == "dog  # woof\ncat: 0.5"
    picture = host_editor.page.locator(".seqlora-picker img").first
    assert picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 16
    host_editor.load(host_editor.saved())  # the host sorts nodes that were made in another order than they run
    tile(host_editor, "cat").wait_for()
    saved = host_editor.saved()
    host_editor.load(saved)
    tile(host_editor, "cat").wait_for()
    assert host_editor.saved() == saved
    prompt = host_editor.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert parse_selection(prompt[str(node)]["inputs"]["concepts"], Library.open(host_pets).names) == {"cat": 0.5, "dog": 1}
    assert host_editor.violations(".seqlora-picker") == []
