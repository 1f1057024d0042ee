"""What it costs a training that its panel is open in the editor: a real ComfyUI teaches the demo model, by turns with the
workflow open in Chromium and with no browser at all. Host and browser have a core each, where there are two.

python -m benchmarks.panel_cost
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.editor import Editor, open_chromium, read_workflow
from tests.support.hosts import HostServer

LIBRARY, TRAIN = "panel cost", "SeqLoRA_TrainConcept"
BAR = 1.02

# A second pack in the host notes when each step is done: whoever asked from outside would be watching, too.
CLOCK = """
import time
import comfy.utils
from aiohttp import web
from server import PromptServer

TIMES = []

class Clocked(comfy.utils.ProgressBar):
    def update_absolute(self, value, total=None, preview=None):
        TIMES.append((time.perf_counter(), value, total))
        super().update_absolute(value, total, preview)

comfy.utils.ProgressBar = Clocked

@PromptServer.instance.routes.get("/clock")
async def clock(request):
    told = list(TIMES)
    TIMES.clear()
    return web.json_response(told)

NODE_CLASS_MAPPINGS = {}
"""


@contextmanager
def clocked_host() -> Iterator[HostServer]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "custom_nodes").mkdir()
        (Path(folder) / "custom_nodes" / "clock.py").write_text(CLOCK, encoding="utf-8")
        paths = Path(folder) / "paths.yaml"
        paths.write_text(f"clock:\n  base_path: {folder}\n  custom_nodes: custom_nodes\n", encoding="utf-8")
        with HostServer("--extra-model-paths-config", str(paths)) as host:
            yield host


COUNT = "() => { window.heard = 0; window.app.api.addEventListener('seqlora.training', () => { window.heard += 1 }) }"


def prepare(editor: Editor, steps: int, preview_every: int) -> dict[str, Any]:
    """Opens a workflow with one training, in view, and returns what the editor would queue."""
    editor.load(read_workflow("SeqLoRA - first run (demo model)"))
    node, queued = editor.page.evaluate(
        """async ([kind, library, values]) => {
            const { graph } = window.app
            const [first] = graph.nodes.filter((node) => node.type === kind)
            for (const node of [...graph.nodes]) if (node.pos[0] > first.pos[0]) graph.remove(node)
            const set = (node, values) => {
                for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name]
            }
            set(first, values)
            set(graph.nodes.find((node) => node.type === 'SeqLoRA_CreateLibrary'), { name: library })
            return [Number(first.id), await window.app.graphToPrompt()]
        }""",
        [TRAIN, LIBRARY, {"concept_name": "watched", "steps": steps, "preview_every": preview_every}],
    )
    editor.look_at_node(node)
    return queued


def train(host: HostServer, queued: dict[str, Any], client: str = "nobody") -> list[float]:
    """Teaches once, and forgets what was taught; the seconds of every step."""
    for node in queued["output"].values():
        if node["class_type"] == TRAIN:
            node["inputs"]["seed"] = time.time_ns()  # otherwise the host would find that it has done this before
    extra = {"extra_pnginfo": {"workflow": queued["workflow"]}}
    prompt = host.post("/prompt", {"prompt": queued["output"], "client_id": client, "extra_data": extra})["prompt_id"]
    entry = host.wait(prompt, 1200)
    if entry["status"]["status_str"] != "success":
        raise RuntimeError(host.log_tail())
    host.post(f"/seqlora/libraries/{quote(LIBRARY)}/concepts/watched/remove", {})
    times = host.get("/clock")
    steps = max(total for _, _, total in times)  # more than the measuring before them
    ends = [at for at, step, total in times if total == steps]
    return [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]


def cores() -> tuple[set[int], set[int]]:
    """For the host and for the browser."""
    allowed = sorted(os.sched_getaffinity(0))
    return {allowed[0]}, {allowed[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--renderer", choices=["classic", "nodes2"], default="classic")
    args = parser.parse_args()
    host_core, browser_core = cores()
    os.sched_setaffinity(0, host_core)
    with clocked_host() as host:
        os.sched_setaffinity(0, browser_core)
        url, open_times, closed_times, events = f"http://127.0.0.1:{host.port}", [], [], []
        with open_chromium() as browser:
            editor = Editor(browser, url, args.renderer)
            queued, with_previews = prepare(editor, args.steps, 0), prepare(editor, args.steps, args.steps // 6)
            editor.close()
        train(host, queued)  # the library's first training measures the model
        for number in range(args.rounds):
            closed = train(host, queued)
            with open_chromium() as browser:
                editor = Editor(browser, url, args.renderer)
                queued = prepare(editor, args.steps, 0)  # so that the panel is this workflow's
                editor.page.evaluate(COUNT)
                opened = train(host, queued, editor.page.evaluate("() => window.app.api.clientId"))
                editor.page.get_by_text("Learned watched").first.wait_for()
                events.append(editor.page.evaluate("() => window.heard") / sum(opened))
                editor.close()
            closed_times += closed
            open_times += opened
            pair = statistics.median(closed), statistics.median(opened)
            print(f"round {number + 1}: closed {pair[0] * 1e3:.1f} ms a step, open {pair[1] * 1e3:.1f} ms", flush=True)
        without, beside = statistics.median(closed_times), statistics.median(open_times)
        shared = ", on ONE core together" if host_core == browser_core else ", each on its own core"
        print(f"{args.renderer}: {args.rounds} x {args.steps} steps each way{shared}")
        print(f"closed {without * 1e3:.2f} ms, open {beside * 1e3:.2f} ms: {beside / without:.4f} x (at most {BAR})")
        print(f"{statistics.mean(events):.1f} events a second")
        train(host, with_previews)
        (state,) = [one for one in host.get("/seqlora/training")["trainings"] if one["previews"]]
        drawn, seconds = len(state["previews"]), state["preview_seconds"]
        print(f"{drawn} previews took {seconds:.1f} s, beside {args.steps * without:.1f} s for all steps")


if __name__ == "__main__":
    main()
