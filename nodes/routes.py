"""HTTP: which trainings run, and asking one of them to end now and keep what it has learned.

A training is named by the id of its node, inside a subgraph a path of ids such as "12:5"; no request names a file. The host
looks at the origin of every request before it comes here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from ..seqlora.trainer import Progress


@dataclass
class Training:
    """A training that runs in the host's worker; requests are answered by another thread."""

    node: str
    library: str
    concept: str
    progress: Progress = Progress("starting", 0, 0)
    keep: bool = False

    def follow(self, progress: Progress) -> str | None:
        self.progress = progress
        return "keep" if self.keep else None

    def told(self) -> dict[str, object]:
        now = self.progress
        loss = now.loss if now.loss == now.loss else None
        names = {"node": self.node, "library": self.library, "concept": self.concept}
        return names | {"phase": now.phase, "step": now.step, "steps": now.steps, "loss": loss, "keep": self.keep}


RUNNING: dict[str, Training] = {}


@contextmanager
def running(node: str | None, library: str, concept: str) -> Iterator[Training]:
    training = Training(node or "", library, concept)
    RUNNING[training.node] = training
    try:
        yield training
    finally:
        del RUNNING[training.node]


async def trainings(request: web.Request) -> web.Response:
    return web.json_response([training.told() for training in RUNNING.values()])


async def keep(request: web.Request) -> web.Response:
    node = request.match_info["node"]
    training = RUNNING.get(node)
    if training is None:
        return web.json_response({"error": f"No training runs on node '{node}'; it may have ended."}, status=404)
    if training.progress.phase != "training":
        return web.json_response({"error": f"'{training.concept}' has made no step yet; wait, or cancel."}, status=409)
    training.keep = True
    return web.json_response(training.told())


ROUTES = (("GET", "/seqlora/training", trainings), ("POST", "/seqlora/train/{node}/keep", keep))
