"""Load Concept Library in a workflow that came without its library."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.editor import Editor
from tests.support.shelves import shelf
from tests.support.stub import StubServer

LOAD, APPLY = "SeqLoRA_LoadLibrary", "SeqLoRA_ApplyComposed"


@pytest.fixture
def received(stub: StubServer, editor: Editor) -> dict[str, Any]:
    """A workflow that names a library 'anna', saved where there was one."""
    stub.libraries = {"anna": shelf("anna", "rex")}
    load, apply = editor.add(LOAD, (40, 40), name="anna"), editor.add(APPLY, (400, 40))
    editor.page.evaluate("([a, b]) => app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 'library')", [load, apply])
    workflow = editor.saved()
    stub.libraries = {"toys": shelf("toys", "bob")}
    stub.send("seqlora.library", {"name": "anna"})
    editor.load(workflow)
    editor.look_at()
    return workflow


def test_it_is_said_on_the_node_until_the_library_is_there(stub: StubServer, editor: Editor, received: dict[str, Any]):
    note = editor.page.get_by_role("alert").filter(has_text="\u201canna\u201d is not on this computer")
    note.wait_for()
    assert note.count() == 1
    editor.page.locator(".seqlora-picker-status").get_by_text("is not on this computer").wait_for()
    assert editor.violations(".seqlora-missing") == []
    assert editor.saved() == received  # nothing of it is saved
    stub.libraries["anna"] = shelf("anna", "rex")
    stub.send("seqlora.library", {"name": "anna"})
    note.wait_for(state="detached")
    assert editor.saved() == received


def test_it_goes_when_another_library_is_chosen(editor: Editor, received: dict[str, Any]):
    note = editor.page.get_by_role("alert").filter(has_text="is not on this computer")
    note.wait_for()
    editor.page.evaluate(
        """(kind) => {
            const [widget] = app.graph.nodes.find(({ type }) => type === kind).widgets
            widget.value = 'toys'
            widget.callback?.('toys')
        }""",
        LOAD,
    )
    note.wait_for(state="detached")
