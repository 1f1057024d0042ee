"""The host's side panel, which shows the inputs of a node that is selected: it takes nothing off the node and leaves nothing
changed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.editor import Editor
from tests.support.shelves import shelf
from tests.support.stub import StubServer

NODES = ("SeqLoRA_ApplyComposed", "SeqLoRA_ConceptPrompt", "SeqLoRA_TrainConcept")
# Texts and elements of the pack on nodes: where they are, on the screen and beside their node.
PLACES = """() => [...document.querySelectorAll('textarea, .seqlora-picker, .seqlora-mentions, .seqlora-panel')]
    .filter((element) => element.closest('.dom-widget, .lg-node') && element.checkVisibility())
    .map((element) => {
        const { x, y, width, height } = element.getBoundingClientRect()
        return [element.className.split(' ')[0], ...[x, y, width, height].map(Math.round)]
    })"""


@pytest.fixture
def nodes(stub: StubServer, editor: Editor) -> list[int]:
    """Apply and Concept Prompt with a library, and Train with a panel."""
    stub.libraries = {"toys": shelf("toys", "rex", "bob", "ada")}
    stub.send("seqlora.library", {"name": "toys"})  # an earlier test had others under this name
    load = editor.add("SeqLoRA_LoadLibrary", (20, 20), name="toys")
    made = [editor.add(kind, (310 * i, 200)) for i, kind in enumerate(NODES)]
    editor.page.evaluate(
        """([load, nodes]) => {
            for (const id of nodes) app.graph.getNodeById(load).connect(0, app.graph.getNodeById(id), 'library')
            app.graph.getNodeById(nodes[1]).widgets.find(({ name }) => name === 'text').value = 'a photo of @bob'
        }""",
        [load, made],
    )
    training = stub.train(str(made[2]), workflow=editor.workflow_id)
    stub.tell(training)
    stub.tell(training, phase="training", step=2, steps=9, losses=[[1, 0.3], [2, 0.2]])
    editor.look_at(0, 0, 0.8)
    editor.page.locator(".seqlora-training").wait_for()
    editor.page.locator(".seqlora-picker").get_by_role("button", name="ada").wait_for()
    return made


def toggle(editor: Editor) -> None:
    editor.page.get_by_role("button", name="Toggle properties panel").first.click()


def select(editor: Editor, node: int | None) -> None:
    editor.page.evaluate(
        "(id) => id === null ? app.canvas.deselectAll() : app.canvas.selectNode(app.graph.getNodeById(id))", node
    )


def places(editor: Editor) -> Any:
    """Once nothing moves any more."""
    seen = None
    while seen != (seen := editor.page.evaluate(PLACES)):
        editor.page.wait_for_timeout(300)
    return seen


def test_everything_stays_where_it_was(editor: Editor, nodes: list[int]):
    before, sizes = places(editor), [node["size"] for node in editor.saved()["nodes"]]
    assert len(before) >= 5  # three texts, the picker, the panel
    toggle(editor)
    for node in nodes:
        select(editor, node)
        heading = editor.page.get_by_text("Parameters", exact=True)
        heading.wait_for()
        assert places(editor) == before
        rows = editor.page.get_by_test_id("section-widgets-list").first.inner_text()
        assert not {"picker", "training", "mentions"} & set(rows.split()), rows
    toggle(editor)
    editor.page.get_by_text("Parameters", exact=True).wait_for(state="detached")
    select(editor, None)
    assert places(editor) == before
    assert [node["size"] for node in editor.saved()["nodes"]] == sizes
