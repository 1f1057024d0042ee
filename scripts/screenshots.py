"""Takes every picture of the editor that this repository shows, from a real ComfyUI in a real browser:

    docs/pictures/                   for the README and the documents
    web/docs/pictures/<node>.jpg     for the help pages
    workflows/<template>.jpg         thumbnails for the template browser

On the way it goes through docs/first-run.md as somebody new would, by clicks alone, and fails where that takes more than ten.

    make screenshots                 some five minutes; ARGS=/tmp/pictures writes to another folder than this repository
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.editor import Editor, open_chromium
from tests.hosts import HostServer

ROOT = Path(__file__).parents[1]
SIZE = {"width": 1600, "height": 1000}
PATIENCE = 1200  # seconds that a run may take
MOST_CLICKS = 10
# What somebody new clicks, until there is a picture with two concepts; the first visit opens the templates by itself.
TEACH = ("seqlora", "teach_two_concepts", "Run")
COMPOSE = ("Templates", "seqlora", "compose_two_concepts", "Run")
BUTTONS = ("Templates", "Run")  # the others are texts in a window
TRAINING, APPLYING = "Teach the second concept", "Apply Composed SeqLoRA"
# What a thumbnail shows: the nodes of these titles, and what lies between them.
TEACH_THUMBNAIL = ("Pictures of the first concept", "Teach the first concept")
COMPOSE_THUMBNAIL = ("Save Image",)
LIBRARY = "my first library"
FIT = """([titles, room]) => {
    const { graph, canvas } = window.app
    const boxes = graph.nodes.filter((node) => !titles || titles.includes(node.title)).map((node) => node.getBounding())
    const left = Math.min(...boxes.map((box) => box[0])) - 20
    const top = Math.min(...boxes.map((box) => box[1])) - 30
    const width = Math.max(...boxes.map((box) => box[0] + box[2])) + 20 - left
    const height = Math.max(...boxes.map((box) => box[1] + box[3])) + 20 - top
    const scale = Math.min(room.most, room.width / width, room.height / height)
    canvas.ds.scale = scale
    canvas.ds.offset = [room.x / scale - left, room.y / scale - top]
    canvas.show_info = false
    canvas.deselectAll()
    canvas.setDirty(true, true)
    return { x: room.x, y: room.y, width: width * scale, height: height * scale }
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=ROOT, help="where to write; this repository if not given")
    out = parser.parse_args().out
    with HostServer() as server, open_chromium() as browser:
        first_run(browser, server, out)
        the_rest(browser, server, out)


def first_run(browser: Any, server: HostServer, out: Path) -> None:
    """docs/first-run.md, and pictures on the way."""
    page = browser.new_page(viewport=SIZE)
    page.goto(f"http://127.0.0.1:{server.port}")
    page.get_by_role("dialog").get_by_text("seqlora", exact=True).wait_for(timeout=60_000)
    clicks: list[str] = []

    def click(name: str) -> None:
        page.wait_for_timeout(2500)
        clicks.append(name)
        if name in BUTTONS:
            page.get_by_role("button", name=name, exact=True).first.click()
        else:
            page.get_by_role("dialog").get_by_text(name, exact=True).click()

    for name in TEACH:
        click(name)
    wait(page, lambda: any(one["concept"] == "sunflower" and one["step"] > 62 for one in trainings(server)))
    quiet(page)
    shoot_nodes(page, help_picture(out, "TrainConcept"), (TRAINING,))
    wait(page, lambda: not server.get("/queue")["queue_running"])
    shoot_nodes(page, out / "docs/pictures/teach.jpg")
    shoot_nodes(page, out / "workflows/teach_two_concepts.jpg", TEACH_THUMBNAIL)
    for name, titles in (
        ("CreateLibrary", "Create Concept Library"),
        ("DemoModel", "SeqLoRA Demo Model"),
        ("DemoPictures", "Pictures of the first concept"),
    ):
        shoot_nodes(page, help_picture(out, name), (titles,))
    for name in COMPOSE:
        click(name)
    wait(page, lambda: len(list(server.output_dir.glob("seqlora_*.png"))) == 1)
    if len(clicks) > MOST_CLICKS:
        raise SystemExit(f"the first run takes {len(clicks)} clicks: {', '.join(clicks)}")
    print(f"a picture with two concepts after {len(clicks)} clicks: {', '.join(clicks)}")
    shoot_nodes(page, out / "docs/pictures/compose.jpg")
    shoot_nodes(page, out / "workflows/compose_two_concepts.jpg", COMPOSE_THUMBNAIL)
    shoot_nodes(page, help_picture(out, "ApplyComposed"), (APPLYING,))
    shoot_nodes(page, help_picture(out, "LoadLibrary"), ("Load Concept Library",))
    page.close()
    page = browser.new_page(viewport=SIZE)  # one that has kept no older thumbnails
    page.goto(f"http://127.0.0.1:{server.port}")
    page.get_by_role("button", name="Templates", exact=True).first.click(timeout=60_000)
    page.get_by_role("dialog").get_by_text("seqlora", exact=True).click()
    page.wait_for_timeout(4000)
    write(page.screenshot(), out / "docs/pictures/templates.jpg")
    page.close()


def the_rest(browser: Any, server: HostServer, out: Path) -> None:
    """The library in the sidebar, the report, the other nodes, Chinese."""
    editor = Editor(browser, f"http://127.0.0.1:{server.port}", "classic")
    page = editor.page
    page.set_viewport_size(SIZE)
    editor.clear()
    nodes = {name: editor.add(f"SeqLoRA_{name}", (500 * number, 0)) for number, name in enumerate(SINGLE)}
    page.evaluate(
        """([loader, nodes, library]) => {
            const { graph } = window.app
            const from = graph.getNodeById(loader)
            from.widgets[0].value = library
            for (const id of nodes) {
                const node = graph.getNodeById(id)
                from.connect(0, node, 0)
                for (const widget of node.widgets ?? []) if (widget.name === 'concept_name') widget.value = 'penguin'
            }
        }""",
        [nodes["LoadLibrary"], [nodes[name] for name in SINGLE if name != "LoadLibrary"], LIBRARY],
    )
    remove(page, nodes.pop("RemoveConcept"), help_picture(out, "RemoveConcept"))
    page.evaluate("() => window.app.queuePrompt(0)")
    wait(page, lambda: not sum(len(jobs) for jobs in server.get("/queue").values()))
    quiet(page)
    page.evaluate("(id) => window.app.graph.getNodeById(id).setSize([440, 560])", nodes["LibraryReport"])
    for name in ("ExportLoRA", "VerifyLibrary", "LibraryReport"):
        shoot_nodes(page, help_picture(out, name), (title_of(page, nodes[name]),))
    write(server.get(f"/seqlora/libraries/{LIBRARY.replace(' ', '%20')}/report.png"), out / "docs/pictures/report.png")
    editor.clear()
    page.locator(".seqlora-concepts-tab-button").click()
    page.wait_for_timeout(3000)
    write(page.screenshot(clip={"x": 0, "y": 36, "width": 560, "height": 620}), out / "docs/pictures/library.jpg")
    editor.close()


SINGLE = ("LoadLibrary", "LibraryReport", "ExportLoRA", "VerifyLibrary", "RemoveConcept")


def remove(page: Any, node: int, file: Path) -> None:
    """A picture of a node that must not run."""
    page.wait_for_timeout(1000)
    shoot_nodes(page, file, (title_of(page, node),))
    page.evaluate("(id) => window.app.graph.remove(window.app.graph.getNodeById(id))", node)


def title_of(page: Any, node: int) -> str:
    return page.evaluate("(id) => window.app.graph.getNodeById(id).title", node)


def trainings(server: HostServer) -> list[dict[str, Any]]:
    return server.get("/seqlora/training")["trainings"]


def wait(page: Any, is_done: Callable[[], bool]) -> None:
    """Lets the page go on meanwhile."""
    end = time.monotonic() + PATIENCE
    page.wait_for_timeout(2000)
    while not is_done():
        if time.monotonic() > end:
            raise SystemExit("ComfyUI was not done in time; is it busy with something else?")
        page.wait_for_timeout(300)
    page.wait_for_timeout(2500)


def help_picture(out: Path, node: str) -> Path:
    return out / "web/docs/pictures" / f"SeqLoRA_{node}.jpg"


def quiet(page: Any) -> None:
    """Hides what lies over the canvas and is not the pack's."""
    page.add_style_tag(content=".litegraph-minimap, .p-toast { visibility: hidden !important }")


def shoot_nodes(page: Any, file: Path, titles: tuple[str, ...] | None = None) -> None:
    """The part of the canvas that these nodes, or all, take up."""
    room = {"x": 80, "y": 110, "width": SIZE["width"] - 420, "height": SIZE["height"] - 130, "most": 1.0}
    clip = page.evaluate(FIT, [titles, room])
    page.wait_for_timeout(2500)
    write(page.screenshot(clip=clip), file)


def write(png: bytes, file: Path) -> None:
    """As a JPEG that is small enough for an archive, or as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        file.write_bytes(png)
    else:
        Image.open(io.BytesIO(png)).convert("RGB").save(file, quality=87, optimize=True)


if __name__ == "__main__":
    main()
