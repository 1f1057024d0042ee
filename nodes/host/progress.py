"""How far a training is, told to the host; its server."""

from __future__ import annotations

import logging
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
Interrupted = comfy.model_management.InterruptProcessingException


def run_with_progress(steps: TrainingSteps[Any], follow: Callable[[Progress], str | None] = lambda progress: None) -> Any:
    """Runs a training to its end, moves the host's bar, and stops it when the user cancels. Returns its result.

    In words the panel tells it, which follows the events of the training; a text of the host's beside it would say all twice.
    """
    bar, phase = None, Phase.STARTING

    def tell(progress: Progress) -> str | None:
        nonlocal bar, phase
        comfy.model_management.throw_exception_if_processing_interrupted()
        if bar is None or progress.phase != phase or progress.step == 1:
            bar, phase = comfy.utils.ProgressBar(progress.steps), progress.phase
        bar.update_absolute(progress.step, progress.steps)
        if progress.note:
            logger.warning("%s", progress.note)
        return follow(progress)

    return run_to_end(steps, tell)  # closes it, which takes the hooks off the model


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
