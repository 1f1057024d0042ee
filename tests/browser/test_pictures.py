"""The drop zone on Load Concept Pictures, in a real Chromium against the real frontend."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.core.test_picture_list import LISTS
from tests.support.editor import THEMES, Editor
from tests.support.hosts import HostServer
from tests.support.stub import StubServer

KIND = "SeqLoRA_LoadPictures"
# Files as the browser hands them over: [name, base64].
FILES = """(files) => {
    const data = new DataTransfer()
    for (const [name, text] of files) {
        const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0))
        data.items.add(new File([bytes], name, { type: 'image/png' }))
    }
    return data
}"""
DROP = f"""async ([selector, files]) => {{
    const dataTransfer = ({FILES})(files), target = document.querySelector(selector)
    const {{ left, top, width }} = target.getBoundingClientRect()
    const at = {{ clientX: left + width / 2, clientY: top + 8, bubbles: true, cancelable: true, dataTransfer }}
    for (const kind of ['dragenter', 'dragover', 'drop']) target.dispatchEvent(new DragEvent(kind, at))
}}"""
PASTE = f"""(files) => document.activeElement.dispatchEvent(
    new ClipboardEvent('paste', {{ clipboardData: ({FILES})(files), bubbles: true, cancelable: true }}))"""


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def file(name: str, image: Image.Image) -> list[str]:
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG"}.get(name.rpartition(".")[2], "PNG"))
    return [name, base64.b64encode(buffer.getvalue()).decode()]


def glass() -> Image.Image:
    image = picture(3).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    return image


MUGS = [file("mug.png", picture(0)), file("photo.jpg", picture(1, (640, 480))), file("glass.png", glass())]
TEXT = ["photo.txt", base64.b64encode(b"\xef\xbb\xbfa mug\non a table\n").decode()]


@pytest.fixture
def node(editor: Editor) -> int:
    made = editor.add(KIND, (80, 80), resolution=64)
    editor.look_at()
    zone(editor).wait_for()
    return made


def zone(editor: Editor) -> Any:
    return editor.page.locator(".seqlora-zone")


def widgets(editor: Editor, node: int) -> dict[str, Any]:
    found = "(id) => Object.fromEntries(app.graph.getNodeById(id).widgets.map((w) => [w.name, w.value]))"
    return editor.page.evaluate(found, node)


def drop(editor: Editor, files: list[list[str]], on: str = ".seqlora-zone") -> None:
    editor.page.evaluate(DROP, [on, files])


def rows(editor: Editor, count: int) -> list[str]:
    """Each picture's text, once there are so many."""
    editor.page.wait_for_function("(n) => document.querySelectorAll('.seqlora-row-picture').length === n", arg=count)
    return [row.inner_text() for row in editor.page.locator(".seqlora-row-picture").all()]


def caption(editor: Editor, name: str) -> Any:
    return editor.page.get_by_label(f"Caption of {name}")


def test_lists_are_read_as_the_core_reads_them(editor: Editor):
    for text, chosen in LISTS:
        read = "async (text) => Object.fromEntries((await import('/extensions/seqlora/pictures/list.mjs')).parse(text))"
        assert (editor.page.evaluate(read, text) or None) == chosen, text


def test_dropped_pictures_are_uploaded_and_shown_as_they_will_be_taught(stub: StubServer, editor: Editor, node: int):
    zone(editor).get_by_text("Drop pictures here").wait_for()
    drop(editor, [*MUGS, TEXT, ["notes.docx", ""]])
    mug, photo, glass = rows(editor, 3)
    assert "mug.png" in mug and "64 \u00d7 64" in mug and "\u2192" not in mug
    assert "640 \u00d7 480 \u2192 72 \u00d7 56, 4% cropped" in photo
    assert "Transparent parts become white" in glass
    found = widgets(editor, node)
    assert found["pictures"] == "mug.png\nphoto.jpg | a mug on a table\nglass.png"
    assert caption(editor, "photo.jpg").input_value() == "a mug on a table"
    assert sorted(path.name for path in (stub.input_dir / found["folder"]).iterdir()) == ["glass.png", "mug.png", "photo.jpg"]
    assert "Not taken, save as PNG or JPEG: notes.docx" in zone(editor).inner_text()
    images = editor.page.locator(".seqlora-thumbnail img").all()
    assert len(images) == 3 and all(image.evaluate("(one) => one.decode().then(() => true)") for image in images)
    assert editor.page.locator(".seqlora-transparent").count() == 1
    # More of them go to the same folder; one that is there already comes once, a twin is named.
    drop(editor, [MUGS[0], file("same.png", picture(0))])
    assert "The same picture as mug.png" in rows(editor, 4)[3]
    assert widgets(editor, node)["folder"] == found["folder"]


def test_captions_are_edited_and_pictures_taken_off_by_keyboard(editor: Editor, node: int):
    drop(editor, MUGS)
    rows(editor, 3)
    press = editor.page.keyboard.press
    caption(editor, "mug.png").focus()
    editor.page.keyboard.type("on a shelf")
    press("Tab")
    press("Tab")  # over the button of the next, to its caption
    editor.page.keyboard.type("outside")
    press("Enter")
    assert widgets(editor, node)["pictures"] == "mug.png | on a shelf\nphoto.jpg | outside\nglass.png"
    for name in ("mug.png", "photo.jpg", "glass.png"):
        editor.page.get_by_label(f"Take {name} off the list").focus()
        press("Enter")
    assert widgets(editor, node)["pictures"] == widgets(editor, node)["folder"] == ""
    assert editor.page.evaluate("() => document.activeElement.textContent").strip() == "Choose pictures"


def test_pasted_and_chosen_pictures_go_to_the_node(editor: Editor, node: int):
    editor.page.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", node)
    editor.page.evaluate(PASTE, [file("image.png", picture(5))])
    rows(editor, 1)
    editor.page.evaluate(PASTE, [file("image.png", picture(6))])
    rows(editor, 2)
    assert widgets(editor, node)["pictures"] == "image.png\nimage (1).png"
    name, data = MUGS[0]
    chosen = {"name": name, "mimeType": "image/png", "buffer": base64.b64decode(data)}
    with editor.page.expect_file_chooser() as opened:
        zone(editor).get_by_role("button", name="Add pictures").click()
    opened.value.set_files([chosen])
    rows(editor, 3)
    assert editor.page.evaluate("() => app.graph.nodes.length") == 1  # the host made no node of its own


def test_a_folder_that_is_there_is_shown_with_what_is_wrong_in_it(stub: StubServer, editor: Editor, node: int):
    folder = stub.input_dir / "mine"
    folder.mkdir()
    picture(0).save(folder / "1.png")
    (folder / "1.txt").write_text("a red thing")
    (folder / "2.png").write_bytes(b"broken")
    choose = "([id, name]) => { const w = app.graph.getNodeById(id).widgets[0]; w.value = name; w.callback?.(name) }"
    editor.page.evaluate(choose, [node, "mine"])
    rows(editor, 1)
    assert caption(editor, "1.png").input_value() == "a red thing"
    assert "left out: 2.png (2.png cannot be read" in zone(editor).inner_text()
    assert widgets(editor, node)["pictures"] == ""  # all of it
    caption(editor, "1.png").fill("a green thing")
    caption(editor, "1.png").press("Enter")
    assert widgets(editor, node)["pictures"] == "1.png | a green thing"
    (folder / "1.png").unlink()
    editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    zone(editor).get_by_text("This file is not in the folder.").wait_for()


def test_a_workflow_holds_the_names_and_is_shown_again(editor: Editor, node: int):
    drop(editor, MUGS)
    rows(editor, 3)
    saved = editor.saved()
    (kept,) = saved["nodes"]
    folder = widgets(editor, node)["folder"]
    assert kept["widgets_values"] == [folder, 64, "mug.png\nphoto.jpg\nglass.png"]
    prompt = editor.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert prompt[str(node)]["inputs"] == {"folder": folder, "resolution": 64, "pictures": "mug.png\nphoto.jpg\nglass.png"}
    editor.load(saved)
    rows(editor, 3)
    assert editor.saved() == saved


@pytest.mark.parametrize("theme", THEMES)
def test_accessible(editor: Editor, node: int, theme: str):
    editor.set("Comfy.ColorPalette", theme)
    assert editor.violations(".seqlora-zone") == []
    drop(editor, [*MUGS, file("same.png", picture(0))])
    rows(editor, 4)
    assert editor.violations(".seqlora-zone") == []
    editor.set("Comfy.ColorPalette", "dark")


@pytest.mark.host
def test_in_a_real_host(server: HostServer, host_editor: Editor):
    made = host_editor.add(KIND, (80, 80), resolution=64)
    host_editor.look_at()
    drop(host_editor, MUGS, on=".seqlora-zone-add")
    assert "640 \u00d7 480 \u2192 72 \u00d7 56" in rows(host_editor, 3)[1]
    caption(host_editor, "mug.png").fill("a plain mug")
    caption(host_editor, "mug.png").press("Enter")
    prompt = host_editor.page.evaluate("async () => (await app.graphToPrompt()).output")
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["load", 1]}}
    outputs = server.run({"load": prompt[str(made)], "shown": shown})
    assert outputs["shown"]["text"] == ["a plain mug", "", ""]
    assert (server.input_dir / prompt[str(made)]["inputs"]["folder"] / "glass.png").is_file()
