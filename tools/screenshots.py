"""Takes every picture of the editor that this repository shows, from a real ComfyUI in a real browser:

    docs/pictures/                   for the README and the documents
    web/docs/pictures/<node>.jpg     for the help pages
    workflows/<template>.jpg         thumbnails for the template browser

On the way it goes through docs/first-run.md as somebody new would, by clicks alone: a first picture, then a concept from five
pictures on disk. It fails where that takes too many clicks, and says how long it took.

    make screenshots                 some five minutes; ARGS=/tmp/pictures writes to another folder than this repository
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from tests.support.editor import Editor, open_chromium
from tests.support.hosts import HostServer
from tools import visitor
from tools.templates import DEMO_CONCEPTS, FIRST, LIBRARY, MODELS, OWN, TWO
from tools.visitor import Clicks, check_recognised

ROOT = Path(__file__).parents[1]
SIZE = {"width": 1600, "height": 1000}
SHARP = 1.5  # pixels of a picture to one of the page
LARGE_THUMBNAIL = 1000  # pixels a side; the template browser shows some 250
PATIENCE = 1200  # seconds that a run may take
# What somebody new clicks, until there is a picture; the first visit opens the templates by itself. At most so many.
FIRST_RUN, MOST_CLICKS = ("seqlora", FIRST, "Run"), 6
OWN_RUN, MOST_OWN = ("Templates", "seqlora", OWN.format("demo model"), "Choose pictures", "Run"), 10
PLACES = ("Templates", "seqlora", TWO, "Run")
TRAINING = "Teach the sunflower"
FIT = """([titles, room]) => {
    const { graph, canvas } = window.app
    const shown = graph.nodes.filter((node) => !titles || titles.includes(node.title))
    const boxes = shown.map(({ pos, size }) => [pos[0], pos[1] - 30, size[0], size[1] + 30]) // bounds lag behind sizes
    const left = Math.min(...boxes.map((box) => box[0])) - 20
    const top = Math.min(...boxes.map((box) => box[1])) - 30
    const width = Math.max(...boxes.map((box) => box[0] + box[2])) + 20 - left
    const height = Math.max(...boxes.map((box) => box[1] + box[3])) + 20 - top
    const scale = Math.min(1, room.width / width, room.height / height)
    canvas.ds.scale = scale
    canvas.ds.offset = [room.x / scale - left, room.y / scale - top]
    canvas.show_info = false
    canvas.deselectAll()
    canvas.setDirty(true, true)
    return { x: room.x, y: room.y, width: width * scale, height: height * scale }
}"""
# Nodes that no template has: their titles, and sizes at which one sees what they say.
OTHERS = {
    "LibraryReport": ("Concept Library Report", [440, 420]),
    "ExportLoRA": ("Export Composed LoRA", [320, 260]),
    "VerifyLibrary": ("Verify Concept Library", [380, 130]),
    "RemoveConcept": ("Remove Concept", [300, 80]),
    "ConceptPrompt": ("Concept Prompt", [420, 330]),
    "ApplyComposed": ("Apply Composed SeqLoRA", [340, 420]),
    "AdoptLoRA": ("Adopt LoRA", [320, 240]),
}
PROMPT = "a photo of @penguin beside @sunflower:0.8"
WRITE = "([id, text]) => { window.app.graph.getNodeById(id).widgets[0].value = text }"
CONNECT = """([library, loader, others]) => {
    const { graph } = window.app
    const from = graph.getNodeById(loader)
    from.widgets[0].value = library
    for (const [id, size] of others) {
        const node = graph.getNodeById(id)
        from.connect(0, node, node.inputs.findIndex((input) => input.type === 'SEQLORA_LIBRARY'))
        node.setSize(size)
        for (const widget of node.widgets ?? []) if (widget.name === 'concept_name') widget.value = 'penguin'
    }
}"""
ZOOM = """(title) => {
    const { graph, canvas } = window.app
    const [x, y, width, height] = graph.nodes.find((node) => node.title === title).getBounding()
    canvas.ds.scale = 1
    canvas.ds.offset = [300 - x, window.innerHeight - 40 - y - height]
    canvas.setDirty(true, true)
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=ROOT, help="where to write; this repository if not given")
    out = parser.parse_args().out
    with HostServer() as server, open_chromium() as browser, TemporaryDirectory() as folder:
        first_run(browser, server, out)
        own_pictures(browser, server, out, visitor.five_files(Path(folder)))
        other_models(browser, server, out)
        shoot_templates(browser, server, out)
        the_rest(browser, server, out)


def first_run(browser: Any, server: HostServer, out: Path) -> None:
    """The first half of docs/first-run.md, and pictures on the way."""
    page = visit(browser, server)
    page.get_by_role("dialog").get_by_text("seqlora", exact=True).wait_for()
    clicks = Clicks(page)
    for name in FIRST_RUN:
        clicks.click(name)
    wait(page, lambda: any(one["concept"] == "sunflower" and one["previews"] for one in trainings(server)))
    quiet(page)
    shoot_panel(page, out / "docs/pictures/panel.jpg")
    shoot_nodes(page, help_picture(out, "TrainConcept"), (TRAINING,))
    wait(page, lambda: len(results(server)) == 1)
    clicks.tell("a picture with two concepts", MOST_CLICKS)
    check_recognised(results(server)[-1], *DEMO_CONCEPTS)
    shoot_nodes(page, out / "docs/pictures/teach.jpg")
    shoot_nodes(page, thumbnail(out, FIRST), ("Concept Prompt", "Save Image"))
    shoot_nodes(page, help_picture(out, "CreateLibrary"), ("Create Concept Library",))
    shoot_nodes(page, help_picture(out, "DemoModel"), ("SeqLoRA Demo Model",))
    shoot_nodes(page, help_picture(out, "DemoPictures"), ("Pictures of the penguin",))
    shoot_nodes(page, help_picture(out, "ConceptRegion"), ("The left place",))
    for name in PLACES:
        clicks.click(name)
    wait(page, lambda: len(results(server)) == 2)
    shoot_nodes(page, thumbnail(out, TWO), ("Save Image",))
    page.close()


def own_pictures(browser: Any, server: HostServer, out: Path, files: list[Path]) -> None:
    """The second half of docs/first-run.md."""
    page = visit(browser, server)
    page.keyboard.press("Escape")  # the templates, where the server takes the visitor for a new one
    before = len(results(server))
    clicks = Clicks(page)
    for name in OWN_RUN:
        if name == "Choose pictures":
            clicks.choose(name, files)
            page.locator(".seqlora-row-picture").nth(len(files) - 1).wait_for()
        else:
            clicks.click(name)
    wait(page, lambda: len(results(server)) == before + 1)
    clicks.tell("a picture of an own concept", MOST_OWN)
    check_recognised(results(server)[-1], visitor.OWN.name)
    quiet(page)
    shoot_nodes(page, out / "docs/pictures/own.jpg")
    shoot_nodes(page, help_picture(out, "LoadPictures"), ("Load Concept Pictures",))
    shoot_nodes(page, thumbnail(out, OWN.format(MODELS[0].title)), ("Load Concept Pictures",))
    page.close()


def other_models(browser: Any, server: HostServer, out: Path) -> None:
    """Thumbnails of the templates whose models are not here: the host looks for files of their names only."""
    for file in (server.models_dir / at for model in MODELS for at, _ in model.files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    page = visit(browser, server)
    page.keyboard.press("Escape")
    for model in MODELS[1:]:
        clicks = Clicks(page)
        for name in ("Templates", "seqlora", OWN.format(model.title)):
            clicks.click(name)
        page.wait_for_timeout(2500)
        quiet(page)
        shoot_nodes(
            page, thumbnail(out, OWN.format(model.title)), ("Read me", "Load Concept Pictures", "Train SeqLoRA Concept")
        )
    page.close()


def shoot_templates(browser: Any, server: HostServer, out: Path) -> None:
    """The template browser, in a page that has kept no older thumbnails."""
    page = visit(browser, server)
    page.get_by_role("button", name="Templates", exact=True).first.click()
    page.get_by_role("dialog").get_by_text("seqlora", exact=True).click()
    page.wait_for_timeout(4000)
    write(page.screenshot(), out / "docs/pictures/templates.jpg")
    page.close()


def the_rest(browser: Any, server: HostServer, out: Path) -> None:
    """The other nodes, the report, the library in the sidebar."""
    editor = Editor(browser, f"http://127.0.0.1:{server.port}", "classic")
    page = editor.page
    page.set_viewport_size(SIZE)
    editor.clear()
    nodes = {name: editor.add(f"SeqLoRA_{name}", (500 * number, 0)) for number, name in enumerate(("LoadLibrary", *OTHERS))}
    page.evaluate(CONNECT, [LIBRARY, nodes["LoadLibrary"], [[nodes[name], size] for name, (_, size) in OTHERS.items()]])
    page.wait_for_timeout(1000)  # until the nodes have their sizes
    page.evaluate(WRITE, [nodes["ConceptPrompt"], PROMPT])
    editor.add("SeqLoRA_TrainingOptions", (500 * len(nodes), 0))
    shoot_nodes(page, help_picture(out, "TrainingOptions"), ("SeqLoRA Training Options",))
    shoot_nodes(page, help_picture(out, "LoadLibrary"), ("Load Concept Library",))
    for name in ("RemoveConcept", "ConceptPrompt", "ApplyComposed", "AdoptLoRA"):  # these must not run
        shoot_nodes(page, help_picture(out, name), (OTHERS[name][0],))
        page.evaluate("(id) => window.app.graph.remove(window.app.graph.getNodeById(id))", nodes[name])
    page.evaluate("() => window.app.queuePrompt(0)")
    wait(page, lambda: not sum(len(jobs) for jobs in server.get("/queue").values()))
    quiet(page)
    for name in ("ExportLoRA", "VerifyLibrary", "LibraryReport"):
        shoot_nodes(page, help_picture(out, name), (OTHERS[name][0],))
    write(server.get(f"/seqlora/libraries/{LIBRARY.replace(' ', '%20')}/report.png"), out / "docs/pictures/report.png")
    editor.clear()
    page.locator(".seqlora-concepts-tab-button").click()
    page.wait_for_timeout(3000)
    write(page.screenshot(clip={"x": 0, "y": 36, "width": 560, "height": 620}), out / "docs/pictures/library.jpg")
    editor.close()


def visit(browser: Any, server: HostServer) -> Any:
    page = browser.new_page(viewport=SIZE, device_scale_factor=SHARP)
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(f"http://127.0.0.1:{server.port}")
    return page


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
    page.get_by_text("Job completed").first.wait_for(state="hidden")  # it lies over the canvas


def results(server: HostServer) -> list[Path]:
    """What Save Image has written, the newest last."""
    return sorted(server.output_dir.glob("seqlora_*.png"))


def thumbnail(out: Path, template: str) -> Path:
    return out / "workflows" / f"{template}.jpg"


def help_picture(out: Path, node: str) -> Path:
    return out / "web/docs/pictures" / f"SeqLoRA_{node}.jpg"


def quiet(page: Any) -> None:
    """Hides what lies over the canvas and is not the pack's."""
    page.add_style_tag(content=".litegraph-minimap, .p-toast { visibility: hidden !important }")


def shoot_nodes(page: Any, file: Path, titles: tuple[str, ...] | None = None) -> None:
    """The part of the canvas that these nodes, or all, take up."""
    room = {"x": 80, "y": 110, "width": SIZE["width"] - 100, "height": SIZE["height"] - 220}
    clip = page.evaluate(FIT, [titles, room])
    page.wait_for_timeout(2500)
    write(page.screenshot(clip=clip), file)


def shoot_panel(page: Any, file: Path, square: bool = False) -> None:
    """What the last training node shows of its training, in full size; or as much from below as is as wide as it is high."""
    page.evaluate(ZOOM, TRAINING)
    page.wait_for_timeout(2500)
    clip = page.locator(".seqlora-panel").last.bounding_box()
    if square:
        clip |= {"y": clip["y"] + clip["height"] - clip["width"], "height": clip["width"]}
    write(page.screenshot(clip=clip), file)


def write(png: bytes, file: Path) -> None:
    """As a JPEG that is small enough for an archive, or as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        file.write_bytes(png)
    else:
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        if file.parent.name == "workflows":
            picture.thumbnail((LARGE_THUMBNAIL, LARGE_THUMBNAIL))
        picture.save(file, quality=87, optimize=True)


if __name__ == "__main__":
    main()
