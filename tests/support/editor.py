"""The ComfyUI editor in a real Chromium, as tests drive it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
NO_BROWSER = f"no browser: that takes a Chromium (now {CHROMIUM}; CHROMIUM names another) and pip install 'seqlora[browser]'"
RENDERERS = ("classic", "nodes2")
MINUTE = 60_000  # milliseconds: where other things compute beside it, a page takes its time
THEMES = ("dark", "light")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing but the server under test is reached
)
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Locale": "en"}
SERIOUS = ("serious", "critical")  # of what axe-core finds


def has_browser() -> bool:
    packages = ("aiohttp", "axe_playwright_python", "comfyui_frontend_package", "playwright")
    return CHROMIUM.is_file() and all(importlib.util.find_spec(package) for package in packages)


@contextmanager
def open_chromium() -> Iterator[Any]:
    """A headless Chromium."""
    if not has_browser():
        raise RuntimeError(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Editor:
    """A page with the editor of a server open, in one of the renderers.

    Settings live in this object and not on the server, so that pages do not change each other.
    """

    def __init__(self, browser: Any, url: str, renderer: str, theme: str = "dark", **settings: Any):
        self.url, self.renderer = url, renderer
        self.settings = SETTINGS | {"Comfy.VueNodes.Enabled": renderer == "nodes2", "Comfy.ColorPalette": theme} | settings
        self.problems: list[str] = []
        self._context = browser.new_context(viewport={"width": 1400, "height": 1200})
        self._context.set_default_timeout(3 * MINUTE)
        self._context.route(re.compile(r"/api/settings(/|$)"), self._answer_settings)
        self.page = self._context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error.message}\n{error.stack}"))
        self.page.on("console", self._hear)
        self.page.goto(url)
        self._wait()

    def close(self) -> None:
        self._context.close()

    def reload(self) -> None:
        """The user presses F5; the editor brings the open workflow back by itself."""
        self.page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
        self.page.wait_for_timeout(800)  # it writes a draft half a second after a change
        nodes = self.page.evaluate("() => window.app.rootGraph.nodes.length")
        self.page.reload()
        self._wait()
        self.page.wait_for_function("(nodes) => window.app.rootGraph.nodes.length === nodes", arg=nodes)
        self.settle()

    def clear(self) -> None:
        """An empty workflow, no message left over, no pictures on nodes to come, and no problem remembered."""
        self.page.evaluate("() => { window.app.extensionManager.toast.removeAll(); window.app.clean() }")
        self.load({"nodes": [], "links": [], "version": 0.4})
        self.look_at()
        self.problems.clear()

    def load(self, workflow: dict[str, Any]) -> None:
        """Opens a workflow in place of the one that is open."""
        self.page.evaluate(
            """async (workflow) => {
                const { activeWorkflow } = window.app.extensionManager.workflow
                await window.app.loadGraphData(workflow, true, true, activeWorkflow)
            }""",
            workflow,
        )
        self.settle()

    def saved(self) -> dict[str, Any]:
        """The open workflow as the editor would write it to a file, but for the part of the canvas that is in view."""
        workflow = self.page.evaluate("() => JSON.parse(JSON.stringify(window.app.rootGraph.serialize()))")
        workflow["extra"].pop("ds", None)
        return workflow

    def add(self, kind: str, at: tuple[int, int] = (80, 80), **widgets: Any) -> int:
        """Puts a node into the graph and returns its id."""
        made = self.page.evaluate(
            """([kind, at, values]) => {
                const node = window.LiteGraph.createNode(kind)
                node.pos = at
                window.app.graph.add(node)
                for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name]
                return Number(node.id)
            }""",
            [kind, list(at), widgets],
        )
        self.settle()
        return made

    @property
    def workflow_id(self) -> str:
        return self.page.evaluate("() => window.app.rootGraph.id")

    def height(self, node: int) -> float:
        """Of a node of the graph that is open, in pixels, without its title."""
        return self.page.evaluate("(id) => window.app.canvas.graph.getNodeById(id).size[1]", node)

    def look_at(self, left: float = 0, top: float = 0, scale: float = 1) -> None:
        """Moves the canvas: the point (left, top) of the graph goes to the corner below the editor's bars."""
        self.page.evaluate(
            """([left, top, scale]) => {
                const { ds } = window.app.canvas
                ds.scale = scale
                ds.offset = [70 / scale - left, 110 / scale - top]
                window.app.canvas.setDirty(true, true)
            }""",
            [left, top, scale],
        )
        self.settle()

    def look_at_node(self, node: int) -> None:
        """Moves the canvas so that the whole of a node of the graph that is open is in view."""
        left, top, height = self.page.evaluate(
            "(id) => { const { pos, size } = window.app.canvas.graph.getNodeById(id); return [...pos, size[1]] }", node
        )
        self.look_at(left - 20, top - 40, min(1, (self.page.viewport_size["height"] - 200) / height))

    def set(self, setting: str, value: Any) -> None:
        self.settings[setting] = value
        self.page.evaluate("([id, value]) => window.app.extensionManager.setting.set(id, value)", [setting, value])
        self.settle()

    def settle(self) -> None:
        """Waits until the page has drawn twice."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def violations(self, within: str) -> list[str]:
        """What axe-core finds serious or critical inside of the elements that a selector names."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page, context=within, options={"resultTypes": ["violations"]}).response["violations"]
        return [
            f"{violation['id']}: {node['target']} {node['failureSummary']}"
            for violation in found
            if violation["impact"] in SERIOUS
            for node in violation["nodes"]
        ]

    def _hear(self, message: Any) -> None:
        where = message.location.get("url", "")
        if (message.type == "error" and "/extensions/seqlora/" in where) or (
            message.type in ("error", "warning") and "seqlora" in message.text.lower()
        ):
            self.problems.append(f"{message.type}: {message.text} ({where})")

    def _wait(self) -> None:
        self.page.wait_for_function(
            "() => window.LiteGraph?.registered_node_types?.SeqLoRA_TrainConcept"
            " && window.app?.extensionManager?.workflow?.activeWorkflow?.activeState"
        )
        self.settle()

    def _answer_settings(self, route: Any) -> None:
        if route.request.method == "GET":
            route.fulfill(json=self.settings)
        else:
            route.fulfill(json={})


def read_workflow(name: str) -> dict[str, Any]:
    path = Path(__file__).resolve().parents[2] / "workflows" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))
