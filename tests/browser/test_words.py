"""What a user reads in the real editor: node names in the chosen language, and help pages with their pictures."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import pytest

from tests.support.editor import Editor
from tests.support.hosts import HostServer
from tools.update_locales import LOCALES

pytestmark = pytest.mark.host
NODE = "SeqLoRA_ApplyComposed"


@pytest.mark.parametrize("language, renderer", [("en", "nodes2"), ("zh", "classic")])
def test_a_node_and_its_help_speak_the_language(server: HostServer, chromium: Any, language: str, renderer: str):
    words = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))[NODE]
    with closing(Editor(chromium, f"http://127.0.0.1:{server.port}", renderer, **{"Comfy.Locale": language})) as editor:
        page = editor.page
        editor.clear()
        node = editor.add(NODE, (0, 0))
        editor.look_at(-100, -200)
        shown = page.evaluate(
            """(id) => {
                const { title, inputs, outputs, widgets } = window.app.graph.getNodeById(id)
                const told = (slot) => slot.label ?? slot.localized_name ?? slot.name
                return { title, slots: inputs.map(told), outputs: outputs.map(told), widgets: widgets.map((one) => one.label) }
            }""",
            node,
        )
        assert shown["title"] == words["display_name"]
        assert shown["slots"][:2] == [words["inputs"][name]["name"] for name in ("model", "library")]
        assert shown["outputs"] == [slot["name"] for slot in words["outputs"].values()]
        page.mouse.click(70 + 100 + 60, 110 + 200 - 15)  # its title
        page.get_by_test_id("info-button").click()
        heading = page.get_by_role("heading", name=words["display_name"])
        heading.first.wait_for()
        picture = page.locator(f"img[src='/extensions/seqlora/docs/pictures/{NODE}.jpg']")
        picture.wait_for()
        page.wait_for_function("(image) => image.complete && image.naturalWidth > 100", arg=picture.element_handle())
        assert not [problem for problem in editor.problems if "/docs/" not in problem]
