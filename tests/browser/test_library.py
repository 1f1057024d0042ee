"""The sidebar tab with all libraries, in a real Chromium against the real frontend; the last tests at a real ComfyUI."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seqlora.library.store import Library
from tests.support.editor import THEMES, Editor
from tests.support.shelves import shelf
from tests.support.stub import StubServer

APPLY, LOAD, PROMPT = "SeqLoRA_ApplyComposed", "SeqLoRA_LoadLibrary", "SeqLoRA_ConceptPrompt"
once = pytest.mark.parametrize("editor", ["classic"], indirect=True)  # what has nothing to do with nodes

NODES = """() => {
    const { graph } = app.canvas
    return graph.nodes.map((node) => ({
        id: Number(node.id), type: node.type, at: [...node.pos],
        values: (node.widgets ?? []).map((widget) => widget.value).slice(0, 1),
        library: Number(graph.getLink(node.inputs.find(({ name }) => name === 'library')?.link)?.origin_id)
    }))
}"""


@pytest.fixture
def toys(stub: StubServer) -> StubServer:
    stub.libraries = {"toys": shelf("toys", "rex", "bob", "ada"), "pets": shelf("pets", "tom", capacity=1)}
    stub.libraries["toys"]["remark"] = "There is another library 'toys' at /elsewhere."
    stub.libraries["lost"] = shelf("lost", problem="'lost' has no library.json; run seqlora repair.")
    return stub


@pytest.fixture
def tab(toys: StubServer, editor: Editor) -> Iterator[Any]:
    with opened(editor) as shown:
        for fold in ("toys", "pets", "lost"):
            button = shown.get_by_role("button", name=fold)
            if button.get_attribute("aria-expanded") != str(fold == "toys").lower():
                button.click()
        card(shown, "tom").wait_for(state="detached")
        card(shown, "rex").wait_for()
        yield shown


class opened:  # noqa: N801
    """The tab, open; closed afterwards."""

    def __init__(self, editor: Editor):
        self.editor = editor

    def __enter__(self) -> Any:
        toggle(self.editor)
        self.editor.look_at(-300)
        return self.editor.page.locator(".seqlora-tab")

    def __exit__(self, *_: object) -> None:
        search = self.editor.page.locator(".seqlora-search")
        search.fill("")
        toggle(self.editor)
        search.wait_for(state="detached")


def toggle(editor: Editor) -> None:
    editor.page.locator(".seqlora-concepts-tab-button").click()


def card(tab: Any, concept: str) -> Any:
    return tab.locator(".seqlora-card").filter(has=tab.page.get_by_role("heading", name=concept, exact=True))


def names(tab: Any) -> list[str]:
    return tab.locator(".seqlora-card h4").all_inner_texts()


def toast(editor: Editor, words: str) -> None:
    editor.page.locator(".p-toast-message").get_by_text(words).first.wait_for()
    editor.page.evaluate("() => app.extensionManager.toast.removeAll()")


def of_type(editor: Editor, kind: str) -> list[dict[str, Any]]:
    return [node for node in editor.page.evaluate(NODES) if node["type"] == kind]


def drop(editor: Editor, concept: str, at: tuple[int, int]) -> None:
    """Drags a card to a place on the screen, by mouse."""
    card(editor.page.locator(".seqlora-tab"), concept).locator(".seqlora-picture").hover()
    editor.page.mouse.down()
    editor.page.mouse.move(at[0] - 20, at[1], steps=3)
    editor.page.mouse.move(*at, steps=2)
    editor.page.mouse.up()
    editor.settle()


# --- What it shows ------------------------------------------------------------------------------------------------------


@once
def test_libraries_with_their_concepts(tab: Any):
    assert names(tab) == ["rex", "bob", "ada"]
    told = card(tab, "bob").inner_text()
    for fact in ("zbob", "toy", "rank 12", "1.3 MB", "Nov 22, 2026"):
        assert fact in told
    tab.get_by_text("rank up to 16").wait_for()
    assert card(tab, "rex").locator(".seqlora-initial").inner_text() == "R"
    assert card(tab, "bob").locator("img").evaluate("(image) => image.decode().then(() => true)")
    tab.get_by_text("3 of 8 concepts, room for 5 more").wait_for()
    tab.get_by_text("There is another library 'toys' at /elsewhere.").wait_for()
    tab.get_by_role("button", name="pets").click()
    tab.get_by_text("1 of 1 concepts, as many as were planned").wait_for()
    tab.get_by_role("button", name="toys").click()
    card(tab, "rex").wait_for(state="detached")
    assert names(tab) == ["tom"]
    tab.get_by_role("button", name="lost").click()
    tab.get_by_text("'lost' has no library.json").wait_for()


@once
def test_search_in_all_libraries(tab: Any):
    for words, expected in (("zBO", ["bob"]), ("to", ["rex", "bob", "ada", "tom"]), ("tom toy", ["tom"])):
        tab.get_by_role("searchbox").fill(words)
        tab.get_by_text(f"Concepts found: {len(expected)}").wait_for()
        assert names(tab) == expected
        found, shown = (tab.locator(of).all_inner_texts() for of in (".seqlora-library-name", ".seqlora-count"))
        counts = dict(zip(found, shown, strict=True))
        assert counts == {"zBO": {"toys": "1"}, "to": {"toys": "3", "pets": "1"}, "tom toy": {"pets": "1"}}[words]
    tab.get_by_role("searchbox").fill("nobody")
    tab.get_by_text("No concept matches \u201cnobody\u201d").wait_for()


@once
def test_what_to_do_where_there_is_nothing(stub: StubServer, editor: Editor):
    with opened(editor) as tab:
        tab.get_by_text("Teach a first concept").wait_for()
        stub.libraries = {"new": shelf("new")}
        stub.send("seqlora.library", {"name": "new"})
        tab.get_by_role("button", name="new").wait_for()
        tab.get_by_text("Connect this library to Train SeqLoRA Concept").wait_for()
        stub.libraries["new"] = shelf("new", "eve")
        stub.send("seqlora.library", {"name": "new"})
        card(tab, "eve").wait_for()


@once
def test_copy_the_trigger(editor: Editor, tab: Any):
    editor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    card(tab, "bob").get_by_role("button", name="Copy the trigger zbob").click()
    tab.get_by_text("Copied: zbob").wait_for()
    assert editor.page.evaluate("() => navigator.clipboard.readText()") == "zbob"


@pytest.mark.parametrize("theme", THEMES)
@once
def test_report(editor: Editor, tab: Any, theme: str):
    editor.set("Comfy.ColorPalette", theme)
    button = tab.get_by_role("button", name="Report")
    button.click()
    window = editor.page.get_by_role("dialog", name="Report on toys")
    assert window.get_by_role("img").evaluate("(image) => image.decode().then(() => true)")
    window.get_by_role("table").wait_for()
    assert editor.violations("dialog.seqlora-report") == []
    editor.page.keyboard.press("Escape")
    window.wait_for(state="detached")
    assert button.evaluate("(button) => button === document.activeElement")
    editor.set("Comfy.ColorPalette", "dark")


@pytest.mark.parametrize("theme", THEMES)
@once
def test_accessible(editor: Editor, tab: Any, theme: str):
    editor.set("Comfy.ColorPalette", theme)
    tab.get_by_role("button", name="lost").click()
    tab.get_by_text("'lost' has no library.json").wait_for()
    assert editor.violations(".seqlora-tab") == []
    editor.set("Comfy.ColorPalette", "dark")


@once
def test_every_control_by_keyboard(toys: StubServer, editor: Editor, tab: Any):
    tab.get_by_role("searchbox").focus()
    editor.page.keyboard.type("bob")
    tab.get_by_text("Concepts found: 1").wait_for()
    seen = []
    tab.get_by_role("button", name="toys").focus()  # trainings of earlier tests may stand before it
    editor.page.keyboard.press("Shift+Tab")
    for _ in range(7):
        editor.page.keyboard.press("Tab")
        seen.append(editor.page.evaluate("() => document.activeElement.ariaLabel ?? document.activeElement.innerText"))
    rest = ["Report", "Save as file", "Copy the trigger zbob", "Use bob in the graph", "Rename bob", "Remove bob"]
    assert [word.replace("\n", " ") for word in seen] == ["toys 1", *rest]
    toys.libraries["toys"]["concepts"][1]["trigger"] = "new"
    toys.send("seqlora.library", {"name": "toys"})
    tab.get_by_role("button", name="Copy the trigger new").wait_for()
    assert editor.page.evaluate("() => document.activeElement.ariaLabel") == "Remove bob"  # focus stays where it was


@once
def test_trainings_are_seen_whatever_workflow_asked_for_them(stub: StubServer, editor: Editor, tab: Any):
    trainings = tab.get_by_role("region", name="Trainings")
    other, own = (stub.train("5", workflow=workflow, concept=name) for workflow, name in (("", "gnu"), ("w", "emu")))
    stub.tell(other, phase="waiting")
    stub.tell(own, phase="training", step=3, steps=9, losses=[[1, 0.3], [2, 0.2], [3, 0.1]])
    trainings.get_by_text("gnu waits").first.wait_for()
    trainings.get_by_role("group", name="Training of emu").get_by_text("3 / 9").wait_for()
    with editor.page.expect_response("**/keep"):
        trainings.get_by_role("group", name="Training of emu").get_by_role("button", name="Stop and keep").click()
    stub.tell(own, phase="finished", step=9)
    trainings.get_by_text("Stopped and kept emu").first.wait_for()
    assert editor.violations(".seqlora-tab") == []


# --- Into the graph -----------------------------------------------------------------------------------------------------


def test_dropped_on_the_canvas_it_makes_a_connected_pair(editor: Editor, tab: Any):
    drop(editor, "bob", (200, 700))  # on the tab itself
    assert editor.page.evaluate(NODES) == []
    drop(editor, "bob", (700, 400))
    (load,), (apply,) = of_type(editor, LOAD), of_type(editor, APPLY)
    assert (load["values"], apply["values"], apply["library"]) == (["toys"], ["bob"], load["id"])
    assert load["at"] == editor.page.evaluate("() => app.clientPosToCanvasPos([700, 400])")
    editor.page.locator(".seqlora-picker").get_by_role("button", name="bob").wait_for()
    editor.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    editor.page.wait_for_function("() => app.graph.nodes.length === 0")  # all of it one step
    toast(editor, "bob is in the graph")


def test_dropped_on_a_node_it_is_added_to_its_text(editor: Editor, tab: Any):
    load, apply = editor.add(LOAD, (200, 300), name="toys"), editor.add(APPLY, (600, 300), concepts="rex: 0.5 # mine")
    onto = tuple(map(int, editor.page.evaluate("() => app.canvasPosToClientPos([700, 420])")))
    drop(editor, "bob", onto)  # no library yet: one is made, beside it
    toast(editor, "bob is in the graph")
    assert [node["values"] for node in of_type(editor, APPLY)] == [["rex: 0.5 # mine\nbob"]]
    assert [node["values"] for node in of_type(editor, LOAD)] == [["toys"], ["toys"]]
    drop(editor, "bob", onto)
    toast(editor, "bob is on in this node already")
    editor.page.evaluate(
        "([from, to]) => { app.graph.getNodeById(from).connect(0, app.graph.getNodeById(to), 'library') }", [load, apply]
    )
    editor.page.evaluate("(id) => { app.graph.getNodeById(id).widgets[0].value = 'pets' }", load)
    drop(editor, "ada", onto)
    toast(editor, "This node uses the library \u201cpets\u201d")
    assert [node["values"] for node in of_type(editor, APPLY)] == [["rex: 0.5 # mine\nbob"]]


def test_dropped_on_a_concept_prompt_it_is_named_there(editor: Editor, tab: Any):
    editor.add(PROMPT, (600, 300), text="a cat beside ")
    onto = tuple(map(int, editor.page.evaluate("() => app.canvasPosToClientPos([700, 420])")))
    drop(editor, "bob", onto)
    toast(editor, "bob is in the graph")
    drop(editor, "rex", onto)
    toast(editor, "rex is in the graph")
    drop(editor, "bob", onto)
    toast(editor, "bob is on in this node already")
    (prompt,), (load,) = of_type(editor, PROMPT), of_type(editor, LOAD)
    assert (prompt["values"], prompt["library"]) == (["a cat beside @bob @rex"], load["id"])


def test_what_it_puts_into_the_graph_is_drawn_without_another_move(editor: Editor, tab: Any):
    card(tab, "ada").get_by_role("button", name="Use ada in the graph").press("Enter")
    editor.page.locator(".seqlora-picker").get_by_role("button", name="ada").wait_for()
    editor.page.wait_for_timeout(300)  # a few frames; nothing moves
    (apply,) = of_type(editor, APPLY)
    left, top, right, bottom = editor.page.evaluate(
        """(id) => {
            const { pos, size } = app.graph.getNodeById(id)
            return [...app.canvasPosToClientPos(pos), ...app.canvasPosToClientPos([pos[0] + size[0], pos[1] + size[1] + 60])]
        }""",
        apply["id"],
    )
    for selector in (".seqlora-picker", "textarea"):
        (box,) = [one.bounding_box() for one in editor.page.locator(selector).all() if one.is_visible()]
        assert left <= box["x"] and box["x"] + box["width"] <= right
        assert top <= box["y"] and box["y"] + box["height"] <= bottom
    toast(editor, "ada is in the graph")


def test_a_dropped_link_offers_what_is_wanted_most(editor: Editor):
    offered, taken = editor.page.evaluate(
        "() => [LiteGraph.slot_types_default_out, LiteGraph.slot_types_default_in].map((all) => all.SEQLORA_LIBRARY)"
    )
    kinds = "ConceptPrompt", "ApplyComposed", "TrainConcept", "LibraryReport"
    assert offered == ["Reroute", *(f"SeqLoRA_{kind}" for kind in kinds)]
    assert "SeqLoRA_RemoveConcept" not in taken[:4]


def test_titles_are_not_cut(editor: Editor):
    for number, kind in enumerate(("DemoModel", "VerifyLibrary", "LibraryReport", "ConceptPrompt")):
        node = editor.add(f"SeqLoRA_{kind}", (60 + 300 * number, 60))
        room, needed = editor.page.evaluate(
            """(id) => {
                const { size, title } = app.graph.getNodeById(id)
                const pen = document.createElement('canvas').getContext('2d')
                pen.font = '14px Inter, Arial'
                return [size[0] - 50, pen.measureText(title).width]
            }""",
            node,
        )
        assert needed <= room, kind


def test_by_button_into_the_selected_node_and_inside_a_subgraph(editor: Editor, tab: Any):
    first = editor.add(APPLY, (500, 300))
    editor.page.evaluate(
        """(id) => {
            const { node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))
            app.canvas.setGraph(node.subgraph)
            app.canvas.deselectAll()
        }""",
        first,
    )
    card(tab, "ada").get_by_role("button", name="Use ada in the graph").press("Enter")
    toast(editor, "ada is in the graph")
    card(tab, "bob").get_by_role("button", name="Use bob in the graph").press("Enter")
    toast(editor, "bob is in the graph")  # into the pair just made, which is selected
    assert [node["values"] for node in of_type(editor, APPLY)] == [["*"], ["ada\nbob"]]
    editor.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")
    assert of_type(editor, APPLY) == []


def test_load_offers_what_was_made_after_the_page_was_opened(stub: StubServer, editor: Editor):
    load = editor.add(LOAD)
    stub.libraries = {"new": shelf("new")}
    stub.send("seqlora.library", {"name": "new"})
    offered = f"app.graph.getNodeById({load}).widgets[0].options.values"
    editor.page.wait_for_function(f"() => String({offered}) === 'new'")
    load = editor.add(LOAD)
    editor.page.wait_for_function(f"() => String(app.graph.getNodeById({load}).widgets[0].options.values) === 'new'")


# --- What it changes ----------------------------------------------------------------------------------------------------


@once
def test_a_refusal_is_told_in_the_servers_words(editor: Editor, tab: Any):
    rename(editor, tab, "bob", "rex")
    toast(editor, "The library has a concept 'rex' already.")
    assert names(tab) == ["rex", "bob", "ada"]


def rename(editor: Editor, tab: Any, concept: str, to: str) -> None:
    card(tab, concept).get_by_role("button", name=f"Rename {concept}").click()
    dialog = editor.page.get_by_role("dialog", name=f"Rename {concept}")
    dialog.get_by_role("textbox").fill(to)
    dialog.get_by_role("textbox").press("Enter")
    dialog.wait_for(state="detached")


@pytest.mark.host
def test_rename_and_remove_on_disk(host_editor: Editor, host_pets: Path):
    with opened(host_editor) as tab:
        tab.get_by_role("searchbox").fill("thing")
        card(tab, "dog").wait_for()
        assert card(tab, "cat").locator("img").evaluate("(image) => image.decode().then(() => true)")
        host_editor.add(LOAD, (200, 300), name="small pets")
        drop(host_editor, "cat", (800, 400))
        picker = host_editor.page.locator(".seqlora-picker")
        assert picker.get_by_role("button", name="cat").get_attribute("aria-pressed") == "true"

        rename(host_editor, tab, "dog", "wolf")
        card(tab, "wolf").wait_for()
        assert Library.open(host_pets).names == ["cat", "wolf"]
        picker.get_by_role("button", name="wolf").wait_for()

        rename(host_editor, tab, "wolf", "../wolf")
        toast(host_editor, "contains '/'")

        card(tab, "cat").get_by_role("button", name="Remove cat").click()
        dialog = host_editor.page.get_by_role("dialog", name="Remove cat?")
        dialog.get_by_role("button", name="Cancel").click()
        dialog.wait_for(state="detached")
        assert Library.open(host_pets).names == ["cat", "wolf"]
        card(tab, "cat").get_by_role("button", name="Remove cat").click()
        dialog.get_by_role("button", name="Delete").click()
        card(tab, "cat").wait_for(state="detached")
        assert Library.open(host_pets).names == ["wolf"]
        host_editor.page.locator(".seqlora-picker-status").get_by_text("no concept \u201ccat\u201d").wait_for()

        tab.get_by_role("region", name="small pets").get_by_role("button", name="Report").click()
        report = host_editor.page.get_by_role("dialog", name="Report on small pets")
        report.get_by_role("row", name="wolf").wait_for()
        assert report.get_by_role("img").evaluate("(image) => image.naturalWidth") > 400
        report.get_by_role("button", name="Close").click()


DROPPED = """([selector, name, text]) => {
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], name))
    const target = document.querySelector(selector)
    for (const kind of ['dragenter', 'dragover', 'drop']) {
        target.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer }))
    }
}"""


@pytest.mark.host
def test_a_library_is_saved_as_a_file_and_comes_back(host_editor: Editor, host_pets: Path, tmp_path: Path):
    page, saved = host_editor.page, tmp_path / "pets.zip"
    came = [host_pets.with_name(f"small pets {number}") for number in (2, 3)]
    try:
        with opened(host_editor) as tab:
            tab.get_by_role("searchbox").fill("thing")
            with page.expect_download() as download:
                tab.get_by_role("region", name="small pets").get_by_role("button", name="Save as file").click()
            assert download.value.suggested_filename == "small pets.zip"
            download.value.save_as(saved)
            tab.locator(".seqlora-open input").set_input_files(saved)
            toast(host_editor, "The library \u201csmall pets 2\u201d is here")
            tab.get_by_role("region", name="small pets 2").wait_for()
            before = host_editor.saved()
            page.evaluate(DROPPED, [".seqlora-tab", "pets.zip", base64.b64encode(saved.read_bytes()).decode()])
            toast(host_editor, "The library \u201csmall pets 3\u201d is here")
            assert host_editor.saved() == before
            page.evaluate(DROPPED, [".seqlora-tab", "bad.zip", base64.b64encode(b"no zip").decode()])
            toast(host_editor, "library.zip is no library's file")
            page.evaluate(DROPPED, [".seqlora-tab", "cat.png", ""])
            toast(host_editor, "cat.png is no library\u2019s file")
            assert host_editor.violations(".seqlora-tab") == []
            tab.get_by_role("searchbox").fill("")
        assert [Library.open(path).digest for path in came] == [Library.open(host_pets).digest] * 2
    finally:
        for path in came:
            shutil.rmtree(path, ignore_errors=True)
    host_editor.problems.clear()  # the browser itself notes the answer 400
