"""Concepts offered where `@` is typed in a prompt, in a real Chromium against the real frontend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.editor import Editor
from tests.support.shelves import shelf
from tests.support.stub import StubServer

PROMPT, LOAD = "SeqLoRA_ConceptPrompt", "SeqLoRA_LoadLibrary"


@pytest.fixture
def field(stub: StubServer, editor: Editor) -> Any:
    """The text of a Concept Prompt with a library."""
    stub.libraries = {"toys": shelf("toys", "rex", "red kettle", "ada")}
    stub.send("seqlora.library", {"name": "toys"})  # an earlier test had others under this name
    load, node = editor.add(LOAD, (20, 20), name="toys"), editor.add(PROMPT, (320, 20))
    editor.page.evaluate("([a, b]) => app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 'library')", [load, node])
    editor.look_at()
    return editor.page.locator("textarea:visible").first


def text(editor: Editor) -> str:
    return editor.page.evaluate(
        "(kind) => app.graph.nodes.find(({ type }) => type === kind).widgets.find(({ name }) => name === 'text').value", PROMPT
    )


def options(editor: Editor) -> Any:
    return editor.page.get_by_role("listbox", name="Concepts of the library").get_by_role("option")


def test_a_name_is_completed_by_keyboard(editor: Editor, field: Any):
    field.click()
    editor.page.keyboard.type("a photo of @")
    options(editor).nth(2).wait_for()
    assert editor.violations(".seqlora-mention") == []
    editor.page.keyboard.type("re")
    options(editor).nth(2).wait_for(state="detached")
    editor.page.keyboard.press("ArrowDown")
    chosen = editor.page.evaluate(
        "() => document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).innerText"
    )
    assert "red kettle" in chosen
    editor.page.keyboard.press("Enter")
    options(editor).first.wait_for(state="hidden")
    editor.page.keyboard.type(":0.5 and @AD")
    options(editor).first.wait_for()
    editor.page.keyboard.press("Tab")
    assert text(editor) == 'a photo of @"red kettle":0.5 and @ada'


@pytest.mark.host
def test_a_text_that_leads_to_the_prompt_of_apply_has_the_list_too(host_editor: Editor, host_pets: Path):
    load, apply = host_editor.add(LOAD, (20, 20), name="small pets"), host_editor.add("SeqLoRA_ApplyComposed", (720, 20))
    words = host_editor.add("PrimitiveStringMultiline", (320, 20))
    connect = """([from, to, name]) => { app.graph.getNodeById(from).connect(0, app.graph.getNodeById(to), name) }"""
    host_editor.page.evaluate(connect, [load, apply, "library"])
    host_editor.page.evaluate(connect, [words, apply, "concepts"])
    host_editor.look_at_node(words)
    host_editor.page.locator("textarea:visible:enabled").first.click()
    host_editor.page.keyboard.type("@c")
    host_editor.page.wait_for_timeout(500)
    assert options(host_editor).count() == 0  # these are lines of names
    host_editor.page.evaluate(connect, [words, apply, "prompt"])
    host_editor.page.keyboard.type("a")
    options(host_editor).get_by_text("cat").first.wait_for()
    host_editor.page.keyboard.press("Escape")


def test_a_click_chooses_and_escape_closes(editor: Editor, field: Any):
    field.click()
    editor.page.keyboard.type("me@x \\@re @r")
    options(editor).first.wait_for()
    editor.page.keyboard.press("Escape")
    options(editor).first.wait_for(state="hidden")
    editor.page.keyboard.type("e")
    options(editor).first.click()
    assert text(editor) == "me@x \\@re @rex"
