"""The training panel in a real Chromium with the real frontend, in both renderers: what it shows, what its controls do, what
it leaves in a workflow. Most of it at a small server that tells of trainings which tests make up; the last part at a real
ComfyUI that trains.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.support.editor import MINUTE, THEMES, Editor, read_workflow
from tests.support.hosts import HostServer

if TYPE_CHECKING:
    from tests.support.stub import StubServer  # needs what a machine without a browser lacks

TRAIN = "SeqLoRA_TrainConcept"
FIRST = "SeqLoRA - first run (demo model)"


def curve(first: int, last: int) -> list[list[float]]:
    return [[step, 0.2 + math.exp(-step / 20)] for step in range(first, last + 1)]


def figures(step: int, crosstalk: float | None = 0.025) -> list[dict[str, Any]]:
    return [{"step": step, "orthogonality": 1.2e-7, "crosstalk": crosstalk}]


def preview(step: int) -> list[dict[str, Any]]:
    def picture(concept: str) -> dict[str, Any]:
        image = {"filename": f"{concept}-{step}.png", "subfolder": "seqlora", "type": "temp"}
        return {"concept": concept, "prompt": f"a photo of {concept}", "seed": 0, "image": image}

    return [{"step": step, "seconds": 1.5, "pictures": [picture("rex"), picture("toy")]}]


def panel(editor: Editor, concept: str = "rex") -> Any:
    return editor.page.get_by_role("group", name=f"Training of {concept}", exact=True)


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect

    expect.set_options(timeout=2 * MINUTE)
    return expect(locator)


def begin(editor: Editor, stub: StubServer, **known: Any) -> tuple[int, str]:
    """A node that has made 30 of 80 steps, drawn previews at 10 and 20, and can be seen: its id and that of the training."""
    node = editor.add(TRAIN)
    training = stub.train(str(node), workflow=editor.workflow_id, **known)
    stub.tell(training)
    news = {"losses": curve(1, 30), "figures": figures(10), "previews": preview(10) + preview(20), "preview_seconds": 3.0}
    stub.tell(training, phase="training", step=30, steps=80, loss=0.4, rate=4.2, left=11.9, **news)
    editor.page.locator(".seqlora-training").wait_for()
    editor.look_at_node(node)
    return node, training


# --- What it shows ------------------------------------------------------------------------------------------------------


def test_a_node_that_never_trained_has_no_panel(editor: Editor):
    editor.look_at_node(editor.add(TRAIN))
    assert editor.page.locator(".seqlora-panel").count() == 0


def test_a_training_is_followed(editor: Editor, stub: StubServer):
    node = editor.add(TRAIN)
    training = stub.train(str(node), workflow=editor.workflow_id)
    stub.tell(training)
    editor.look_at_node(node)
    shown, stop, cancel = panel(editor), *(panel(editor).get_by_role("button", name=n) for n in ("Stop and keep", "Cancel"))
    expect(shown).to_contain_text("Starting rex")
    expect(stop).to_be_disabled()
    expect(cancel).to_be_enabled()
    expect(shown.locator(".seqlora-chart")).to_be_hidden()

    stub.tell(training, phase="measuring", step=3, steps=8, note="Waiting for another training.")
    expect(shown).to_contain_text("Measuring for rex3 / 8Waiting for another training.")
    expect(stop).to_be_disabled()

    stub.tell(training, phase="training", step=20, steps=80, note="", rate=4.2, left=75, losses=curve(1, 20))
    expect(shown).to_contain_text("Learning rex20 / 804.2 steps/s1m 15s left")
    expect(stop).to_be_enabled()
    smooth = shown.locator(".seqlora-smooth")
    short = smooth.get_attribute("d")
    assert re.findall(r"[ML]([\d.]+) ", short)[-1] == "250.0"  # a quarter of the way
    expect(shown.get_by_role("img", name=re.compile("Loss, smoothed: .* at step 20"))).to_be_visible()

    stub.tell(training, step=40, losses=curve(21, 40), figures=figures(40))
    expect(shown).to_contain_text("Orthogonality error1E-7Crosstalk2.5%")
    assert smooth.get_attribute("d").startswith(short[:4]) and len(re.findall("[ML]", smooth.get_attribute("d"))) == 40

    stub.tell(training, phase="saving")
    expect(shown).to_contain_text("Saving rex")
    expect(stop).to_be_disabled()
    stub.tell(training, phase="finished", step=80)
    expect(shown).to_contain_text("Learned rex80 / 80In the library toys. Write \u201czorv toy\u201d in prompts.")
    expect(stop).to_be_hidden()
    expect(cancel).to_be_hidden()
    expect(smooth).to_be_visible()


def test_a_first_concept_has_no_crosstalk(editor: Editor, stub: StubServer):
    _, training = begin(editor, stub)
    shown = panel(editor)
    expect(shown.get_by_text("Crosstalk")).to_be_visible()
    other = stub.train(stub.trainings.pop(training)["node"], workflow=editor.workflow_id)
    stub.tell(other)
    stub.tell(other, phase="training", step=1, steps=80, losses=curve(1, 1), figures=figures(1, None))
    expect(shown.get_by_text("Orthogonality error")).to_be_visible()
    expect(shown.get_by_text("Crosstalk")).to_be_hidden()


def test_undo_leaves_it_alive(editor: Editor, stub: StubServer):
    node, training = begin(editor, stub)
    tracker = "window.app.extensionManager.workflow.activeWorkflow.changeTracker"
    for value in (300, 400):
        editor.page.evaluate(
            f"""([id, value]) => {{
                window.app.graph.getNodeById(id).widgets.find(({{ name }}) => name === 'steps').value = value
                {tracker}.captureCanvasState()
            }}""",
            [node, value],
        )
    editor.page.evaluate(f"() => {tracker}.undo()")
    steps = "(id) => window.app.graph.getNodeById(id).widgets.find(({ name }) => name === 'steps').value"
    assert editor.page.evaluate(steps, node) == 300
    stub.tell(training, step=31, losses=curve(31, 31))
    expect(panel(editor)).to_have_count(1)
    expect(panel(editor)).to_contain_text("31 / 80")


@pytest.mark.parametrize(
    ("phase", "known", "sentence"),
    [
        (
            "finished",
            {"keep": True},
            "Stopped and kept rex30 / 80In the library toys. Write \u201czorv toy\u201d in prompts. Stopped at step 30 of 80.",
        ),
        ("failed", {"note": "There are <b>no</b> images."}, "rex failed30 / 80There are <b>no</b> images."),
        ("cancelled", {}, "rex cancelled30 / 80The library is as it was. Run the same again to go on from step 30."),
    ],
)
def test_how_it_ended(editor: Editor, stub: StubServer, phase: str, known: dict[str, Any], sentence: str):
    _, training = begin(editor, stub)
    stub.tell(training, phase=phase, **known)
    expect(panel(editor)).to_contain_text(sentence)
    expect(panel(editor).get_by_role("button")).to_have_count(0)
    if phase != "finished":
        expect(panel(editor)).not_to_contain_text("Write")


TICK = ".pi-check, .pi-check-circle"


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ({"verdict": "hardly"}, "Hardly learned rex"),
        ({"verdict": "spoilt"}, "rex went wrong"),
        ({"verdict": "hardly", "keep": True}, "Stopped and kept rex"),
    ],
)
def test_what_was_not_learned_gets_no_tick(editor: Editor, stub: StubServer, known: dict[str, Any], sentence: str):
    _, training = begin(editor, stub)
    stub.tell(training, phase="finished", note="Teach it anew.", **known)
    expect(panel(editor)).to_contain_text(sentence)
    expect(panel(editor)).to_contain_text("Teach it anew. It is in the library toys; to teach it anew in its place")
    expect(panel(editor)).not_to_contain_text("Write")
    assert panel(editor).locator(f"strong :is({TICK})").count() == 0
    toast = editor.page.locator(".p-toast-message").filter(has_text=sentence)
    expect(toast).to_contain_text(sentence)
    assert "p-toast-message-warn" in toast.get_attribute("class") and "Learned" not in toast.inner_text()


def test_a_training_without_a_name_is_told_of_as_well(editor: Editor, stub: StubServer):
    node = editor.add(TRAIN)
    stub.tell(stub.train(str(node), workflow=editor.workflow_id, concept=""), phase="failed", note="Give it a name.")
    editor.look_at_node(node)
    expect(editor.page.locator(".seqlora-training")).to_contain_text("The concept failedGive it a name.")


@pytest.mark.parametrize("editor", ["classic"], indirect=True)
def test_the_hosts_side_panel_does_not_make_it_narrower(editor: Editor, stub: StubServer):
    node, _ = begin(editor, stub)
    editor.page.evaluate("(id) => { for (const one of app.graph.getNodeById(id).widgets) one.width = 100 }", node)
    editor.page.evaluate("() => app.canvas.setDirty(true, true)")
    editor.settle()
    width = editor.page.evaluate("(id) => app.graph.getNodeById(id).size[0]", node)
    assert panel(editor).bounding_box()["width"] > 0.8 * width


def test_past_previews(editor: Editor, stub: StubServer):
    _, training = begin(editor, stub)
    shown = panel(editor)
    slider, first = shown.get_by_role("slider", name="Preview pictures"), shown.get_by_role("img", name="rex at step")

    def seen() -> str:
        return re.search(r"rex-(\d+)\.png", first.get_attribute("src"))[1]

    expect(shown).to_contain_text("step 20 (1.5s)all previews: 3s")
    expect(shown.get_by_role("img", name="toy at step 20: a photo of toy")).to_be_visible()
    assert seen() == "20"
    expect(first).to_have_js_property("naturalWidth", 64)
    slider.focus()
    editor.page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "step 10 (1.5s)")
    assert seen() == "10"
    stub.tell(training, step=31, previews=preview(30))  # whoever looks at an old one goes on looking
    expect(slider).to_have_attribute("max", "2")
    assert seen() == "10"
    editor.page.keyboard.press("End")
    expect(slider).to_have_attribute("aria-valuetext", "step 30 (1.5s)")
    stub.tell(training, step=41, previews=preview(40))
    expect(slider).to_have_attribute("aria-valuetext", "step 40 (1.5s)")


def test_the_end_is_told_once_also_of_a_node_elsewhere(editor: Editor, stub: StubServer):
    _, training = begin(editor, stub)
    toasts = editor.page.locator(".p-toast-message")
    expect(toasts).to_have_count(0)
    stub.tell(training, phase="finished", step=80)
    stub.tell(training, phase="finished", step=80)
    expect(toasts).to_have_count(1)
    expect(toasts).to_contain_text("Learned rex")
    gone = stub.train("5", workflow=editor.workflow_id, concept="gnu")  # its node was deleted meanwhile
    stub.tell(gone)
    stub.tell(gone, phase="finished")
    expect(toasts).to_have_count(2)
    for phase, known in (
        ("finished", {"workflow": "another one"}),  # somebody else's
        ("finished", {"reused": True}),
        ("failed", {}),  # the host tells of it
        ("cancelled", {}),
    ):
        training = stub.train("6", **{"workflow": editor.workflow_id} | known)
        stub.tell(training)
        stub.tell(training, phase=phase, note="There are no images.")
    editor.settle()
    expect(toasts).to_have_count(2)
    expect(panel(editor).get_by_role("status")).to_have_text("rex is learned and in the library toys.")


# --- What its controls do -----------------------------------------------------------------------------------------------


def test_stop_and_keep_by_keyboard(editor: Editor, stub: StubServer):
    node, training = begin(editor, stub)
    shown = panel(editor)
    shown.get_by_role("slider").focus()
    editor.page.keyboard.press("Tab")
    expect(shown.get_by_role("button", name="Stop and keep")).to_be_focused()
    editor.page.keyboard.press("Tab")
    expect(shown.get_by_role("button", name="Cancel")).to_be_focused()
    editor.page.keyboard.press("Shift+Tab")
    with editor.page.expect_response("**/keep"):  # the button changes before its request arrives
        editor.page.keyboard.press("Enter")
    expect(shown.get_by_role("button", name="Stopping")).to_be_disabled()
    expect(shown.get_by_role("button", name="Cancel")).to_be_enabled()
    assert [path for path, _ in stub.asked if "/seqlora/" in path] == [f"/seqlora/train/{node}/keep"]
    stub.tell(training, phase="finished")
    expect(shown).to_contain_text("Stopped and kept rex")


def test_cancel_by_keyboard(editor: Editor, stub: StubServer):
    _, training = begin(editor, stub)
    shown = panel(editor)
    shown.get_by_role("button", name="Cancel").focus()
    with editor.page.expect_response("**/interrupt"):
        editor.page.keyboard.press("Space")
    expect(shown.get_by_role("button", name="Cancelling")).to_be_disabled()
    expect(shown.get_by_role("button", name="Stop and keep")).to_be_disabled()
    assert [path for path, _ in stub.asked].count("/interrupt") == 1
    stub.tell(training, phase="cancelled")
    expect(shown).to_contain_text("rex cancelled")


def test_a_refusal_is_shown_and_can_be_tried_again(editor: Editor, stub: StubServer):
    node, training = begin(editor, stub)
    stub.trainings[training]["phase"] = "saving"  # it has just ended, and the news is not here yet
    shown = panel(editor)
    shown.get_by_role("button", name="Stop and keep").click()
    expect(shown).to_contain_text(f"No training runs on node '{node}'; it may have ended.")
    expect(shown.get_by_role("button", name="Stop and keep")).to_be_enabled()


# --- Where it is shown --------------------------------------------------------------------------------------------------


def test_several_trainings_and_one_that_no_workflow_asked_for(editor: Editor, stub: StubServer):
    nodes = [editor.add(TRAIN, at=(at, 0)) for at in (0, 400, 800)]
    for node, (concept, workflow) in zip(
        nodes, [("rex", editor.workflow_id), ("blob", editor.workflow_id), ("gnu", "")], strict=True
    ):
        training = stub.train(str(node), workflow=workflow, concept=concept)
        stub.tell(training)
        stub.tell(training, phase="training", step=1, steps=2, losses=curve(1, 1))
    stub.tell(stub.train("99", workflow=editor.workflow_id, concept="gone"))  # a node that is not there
    editor.look_at_node(nodes[0])
    expect(panel(editor, "rex")).to_be_visible()
    expect(panel(editor, "blob")).to_be_visible()
    expect(editor.page.locator(".seqlora-panel")).to_have_count(2)


def test_inside_a_subgraph(editor: Editor, stub: StubServer):
    node = editor.add(TRAIN)
    outer, inner = editor.page.evaluate(
        """(id) => {
            const { graph } = window.app
            const { node, subgraph } = graph.convertToSubgraph(new Set([graph.getNodeById(id)]))
            return [String(node.id), String(subgraph.nodes[0].id)]
        }""",
        node,
    )
    training = stub.train(f"{outer}:{inner}", workflow=editor.workflow_id)
    stub.tell(training)
    stub.tell(training, phase="training", step=20, steps=80, losses=curve(1, 20))
    editor.look_at_node(int(outer))
    expect(panel(editor)).to_contain_text("Learning rex20 / 80")  # on the subgraph's own node too
    expect(editor.page.locator(".seqlora-panel:visible")).to_have_count(1)
    editor.page.evaluate(
        "(id) => { const node = window.app.graph.getNodeById(id); window.app.canvas.openSubgraph(node.subgraph, node) }", outer
    )
    editor.settle()
    editor.look_at_node(int(inner))
    expect(panel(editor)).to_contain_text("Learning rex20 / 80")
    with editor.page.expect_response("**/keep"):
        panel(editor).get_by_role("button", name="Stop and keep").click()
    expect(panel(editor).get_by_role("button", name="Stopping")).to_be_disabled()
    assert stub.asked[-1][0] == f"/seqlora/train/{outer}:{inner}/keep"


def test_a_reload_restores_it(editor: Editor, stub: StubServer):
    node, training = begin(editor, stub)
    expect(panel(editor)).to_be_visible()
    stub.tell(training, note="")
    editor.reload()
    editor.look_at_node(node)
    expect(panel(editor)).to_contain_text("Learning rex30 / 80")
    expect(panel(editor)).to_contain_text("step 20 (1.5s)")
    stub.tell(training, step=31, losses=curve(31, 31))
    expect(panel(editor)).to_contain_text("31 / 80")
    assert len(re.findall("[ML]", panel(editor).locator(".seqlora-raw").get_attribute("d"))) == 31
    stub.tell(training, phase="finished", step=80)
    expect(editor.page.locator(".p-toast-message")).to_have_count(1)


def test_what_happened_before_the_editor_heard_of_it_is_asked_for(editor: Editor, stub: StubServer):
    node = editor.add(TRAIN)
    training = stub.train(str(node), workflow=editor.workflow_id, losses=curve(1, 30), phase="training", steps=80)
    stub.tell(training, step=31, losses=curve(31, 31))
    editor.look_at_node(node)
    expect(panel(editor)).to_contain_text("31 / 80")
    expect(panel(editor).locator(".seqlora-raw")).to_have_attribute("d", re.compile(r"(L[^L]+){30}"))


# --- What it leaves in a workflow ---------------------------------------------------------------------------------------


def test_nothing_is_saved(editor: Editor, stub: StubServer):
    editor.load(read_workflow(FIRST))
    before = editor.saved()
    (node, *_) = [node["id"] for node in before["nodes"] if node["type"] == TRAIN]
    training = stub.train(str(node), workflow=editor.workflow_id)
    stub.tell(training)
    stub.tell(training, phase="training", step=20, steps=80, losses=curve(1, 20), previews=preview(10))
    editor.look_at_node(node)
    expect(panel(editor)).to_be_visible()
    expect(panel(editor).get_by_role("img", name="rex at step")).to_be_visible()
    editor.settle()
    assert editor.height(node) > next(n for n in before["nodes"] if n["id"] == node)["size"][1]
    assert editor.saved() == before
    editor.load(editor.saved())
    editor.look_at_node(node)
    expect(panel(editor)).to_be_visible()
    assert editor.saved() == before


def test_a_height_that_the_user_gave_is_saved(editor: Editor, stub: StubServer):
    node, training = begin(editor, stub)
    expect(panel(editor)).to_be_visible()
    editor.settle()
    (before,) = editor.saved()["nodes"]
    editor.page.evaluate(
        "(id) => { const node = window.app.graph.getNodeById(id); node.setSize([node.size[0], node.size[1] + 200]) }", node
    )
    editor.settle()
    stub.tell(training, previews=preview(30), phase="finished")
    expect(panel(editor)).to_contain_text("Learned rex")
    editor.settle()
    (after,) = editor.saved()["nodes"]
    assert after["size"][1] == pytest.approx(before["size"][1] + 200, abs=1)


# --- Whether everybody can use it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
def test_accessibility(editor: Editor, stub: StubServer, theme: str):
    _, training = begin(editor, stub)
    editor.set("Comfy.ColorPalette", theme)
    try:
        expect(panel(editor)).to_be_visible()
        assert editor.violations(".seqlora-panel") == []
        for phase in ("failed", "finished"):
            stub.tell(training, phase=phase, note="There are no images.")
            expect(panel(editor).get_by_role("button")).to_have_count(0)
            assert editor.violations(".seqlora-panel") == []
    finally:
        editor.set("Comfy.ColorPalette", THEMES[0])


# --- At a real ComfyUI --------------------------------------------------------------------------------------------------


def find_node(editor: Editor, words: str) -> list[str]:
    """What the editor's search for nodes answers."""
    editor.page.evaluate("() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    search = editor.page.get_by_placeholder("Add a node")
    search.fill(words)
    results = editor.page.get_by_test_id("result-item")
    expect(results.filter(has_text="SeqLoRA").first).to_be_visible()
    found = results.all_inner_texts()
    search.press("Escape")
    return found


def test_nodes_are_found_by_name_and_alias(editor: Editor):
    for words, title in (("train seqlora", "Train SeqLoRA Concept"), ("lora stack", "Apply Composed SeqLoRA")):
        assert any(title in line for line in find_node(editor, words)), words


@pytest.mark.host
def test_nodes_are_found_at_the_host(host_editor: Editor):
    assert any("Train SeqLoRA Concept" in line for line in find_node(host_editor, "train seqlora"))


def run(editor: Editor) -> None:
    editor.page.get_by_role("button", name="Run", exact=True).first.click()


def load_first(editor: Editor, concept: str, **widgets: Any) -> int:
    """Opens the example workflow with its first training only; the id of that node."""
    editor.load(read_workflow(FIRST))
    node = editor.page.evaluate(
        """([kind, values]) => {
            const { graph } = window.app
            const [first] = graph.nodes.filter((node) => node.type === kind)
            for (const node of [...graph.nodes]) if (node.pos[0] > first.pos[0]) graph.remove(node)
            for (const widget of first.widgets) if (widget.name in values) widget.value = values[widget.name]
            return Number(first.id)
        }""",
        [TRAIN, widgets | {"concept_name": concept}],
    )
    editor.look_at_node(node)
    return node


def teach(editor: Editor, concept: str) -> int:
    """Runs that training for longer than a test lasts; the id of its node."""
    node = load_first(editor, concept, steps=4000, batch_size=1, preview_every=5)
    run(editor)
    learning = re.compile(r"[1-9]\d* / 4,000")
    expect(panel(editor, concept)).to_contain_text(learning, timeout=5 * MINUTE)  # the library's first one measures the model
    return node


def concepts(server: HostServer) -> list[str]:
    """Of all libraries."""
    names = [library["name"] for library in server.get("/seqlora/libraries")["libraries"]]
    return [concept["name"] for name in names for concept in server.get(f"/seqlora/libraries/{quote(name)}")["concepts"]]


def check_streaming(editor: Editor, node: int, concept: str) -> Any:
    """The panel, once a picture is in it."""
    shown = panel(editor, concept)
    expect(shown.get_by_text("Orthogonality error")).to_be_visible()
    picture = shown.get_by_role("img", name=re.compile(f"{concept} at step"))
    expect(picture).to_be_visible(timeout=5 * MINUTE)
    expect(picture).to_have_js_property("naturalWidth", 64)
    widgets = editor.page.evaluate("(id) => app.graph.getNodeById(id).widgets.map(({ name }) => name)", node)
    assert not [name for name in widgets if "preview" in name and name != "preview_every"]  # no text of the host's beside it
    expect(shown.locator(".seqlora-raw")).to_have_attribute("d", re.compile("M0.3 .*L"))  # from the first step on
    editor.look_at_node(node)  # it has grown
    return shown


def stop_and_keep(editor: Editor, shown: Any, concept: str) -> None:
    shown.get_by_role("button", name="Stop and keep").click()
    expect(shown).to_contain_text(f"Stopped and kept {concept}")
    expect(shown).to_contain_text(re.compile(r"Stopped at step \d+ of 4,000"))
    expect(editor.page.locator(".p-toast-message").filter(has_text=concept)).to_have_count(1)


@pytest.mark.host
@pytest.mark.parametrize("host_editor", ["nodes2"], indirect=True)
def test_a_training_streams_into_the_panel_and_is_stopped_and_kept(host_editor: Editor, server: HostServer):
    node = teach(host_editor, "gnu")
    shown = check_streaming(host_editor, node, "gnu")
    stop_and_keep(host_editor, shown, "gnu")
    assert "gnu" in concepts(server)


@pytest.mark.host
@pytest.mark.parametrize("host_editor", ["classic"], indirect=True)
def test_a_training_survives_a_reload_and_goes_on_after_it_was_cancelled(host_editor: Editor, server: HostServer):
    node = teach(host_editor, "emu")
    host_editor.reload()
    host_editor.look_at_node(node)
    shown = check_streaming(host_editor, node, "emu")
    shown.get_by_role("button", name="Cancel").click()
    expect(shown).to_contain_text("emu cancelled")
    expect(shown).to_contain_text(re.compile(r"Run the same again to go on from step [1-9]\d*\."))
    assert "emu" not in concepts(server)
    run(host_editor)
    expect(shown).to_contain_text(re.compile(r"Learning emu[1-9]"))
    expect(shown.locator(".seqlora-raw")).to_have_attribute("d", re.compile("M0.3 .*L"))  # what was seen before is still there
    expect(shown.get_by_role("img", name=re.compile("emu at step"))).to_be_visible()
    stop_and_keep(host_editor, shown, "emu")
    assert "emu" in concepts(server)


@pytest.mark.host
@pytest.mark.parametrize("host_editor", ["classic"], indirect=True)
def test_what_learns_nothing_and_what_is_spoilt_is_said_by_the_real_trainer(host_editor: Editor, server: HostServer):
    for rate, concept in ((1e-7, "ant"), (1.0, "bee")):
        words = re.compile(f"Hardly learned {concept}|{concept} went wrong")  # the other one may come to either
        node = load_first(host_editor, concept, steps=20, batch_size=4, learning_rate=rate, preview_every=0)
        run(host_editor)
        expect(panel(host_editor, concept)).to_contain_text(words, timeout=5 * MINUTE)
        expect(panel(host_editor, concept)).to_contain_text("Teach it anew with a")
        assert panel(host_editor, concept).locator(f"strong :is({TICK})").count() == 0
        expect(host_editor.page.locator(".p-toast-message-warn").filter(has_text=words)).to_have_count(1)
        assert host_editor.page.locator(".p-toast-message-success").filter(has_text=concept).count() == 0
        (*_, last) = server.get("/history").values()
        assert re.match(f"{concept}: (hardly learned|went wrong)\n", last["outputs"][str(node)]["text"][0])
