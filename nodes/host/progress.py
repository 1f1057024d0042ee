"""How far a training is, told to the host; its server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import comfy.ldm.modules.attention
import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import comfy.weight_adapter
from server import PromptServer

from ...seqlora.training.progress import Phase, Progress, TrainingSteps, run_to_end

logger = logging.getLogger("seqlora")
TEXT_INTERVAL = 0.5  # seconds between status texts
Interrupted = comfy.model_management.InterruptProcessingException


def run_with_progress(
    steps: TrainingSteps[Any], node_id: str | None, follow: Callable[[Progress], str | None] = lambda progress: None
) -> Any:
    """Runs a training to its end, shows how far it is, and stops it when the user cancels. Returns its result."""
    bar, phase, said = None, Phase.STARTING, 0.0

    def tell(progress: Progress) -> str | None:
        nonlocal bar, phase, said
        comfy.model_management.throw_exception_if_processing_interrupted()
        if bar is None or progress.phase != phase or progress.step == 1:
            bar, phase = comfy.utils.ProgressBar(progress.steps), progress.phase
        bar.update_absolute(progress.step, progress.steps)
        if progress.note:
            logger.warning("%s", progress.note)
        if progress.note or time.monotonic() - said >= TEXT_INTERVAL or progress.step == progress.steps:
            said = time.monotonic()
            say(node_id, progress.note or str(progress))
        return follow(progress)

    try:
        return run_to_end(steps, tell)  # closes it, which takes the hooks off the model
    except Interrupted:
        if phase is Phase.TRAINING:
            say(node_id, "cancelled; queue the same again to go on from here")
        raise


def say(node_id: str | None, text: str) -> None:
    """Shows a line of text on a node in the editor."""
    server = getattr(PromptServer, "instance", None)  # None where there is no server, as in tests
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id, server.client_id)


def remark(node_id: str | None, text: str) -> None:
    """Says on a node, and in the log, what is no error but should be known."""
    logger.warning("%s", text)
    say(node_id, text)


def send(event: str, data: dict[str, Any]) -> None:
    """Sends an event to every open editor; what is in it must not change any more."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, data)


def add_routes(routes: Iterable[tuple[str, str, Any]]) -> None:
    """Adds (method, path, handler) to the host's server, behind its middleware; without a server nothing."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        for method, path, handler in routes:
            server.routes.route(method, path)(handler)
