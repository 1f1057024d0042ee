"""The node that shows what a library's concepts do to each other; the server's routes show the same."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..seqlora.errors import SeqLoRAError
from ..seqlora.library.store import Library
from ..seqlora.report.report import library_report
from ..seqlora.report.report_image import draw_report
from .library import CATEGORY, LibraryHandle, LibraryType


def report_of(library: Library) -> dict[str, Any]:
    """The figures of all concepts of a library. Raises SeqLoRAError where it has none."""
    if not library.names:
        raise SeqLoRAError(
            f"Library '{library.path.name}' has no concepts yet, so there is nothing to report", "teach one first"
        )
    return json.loads(_figures(library.path, library.digest))


@lru_cache(maxsize=8)
def _figures(path: Path, digest: str) -> str:
    """As JSON; computed once for each state of a library, since a large one takes a while."""
    library = Library.open(path)
    return json.dumps(library_report(library, dict.fromkeys(library.names, 1.0)), indent=1, ensure_ascii=False)


def report_picture(library: Library) -> Image.Image:
    """The same as a picture, some 1750 pixels wide for up to forty concepts."""
    return draw_report(report_of(library))


class LibraryReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_LibraryReport",
            display_name="Concept Library Report",
            category=CATEGORY,
            description="Draws how much the concepts of a library overlap and disturb each other, how full its layers are, and "
            "how much is forgotten. No model is needed.",
            search_aliases=["library statistics", "crosstalk", "concept overlap", "lora heatmap", "forgetting"],
            is_output_node=True,
            inputs=[LibraryType.Input("library", tooltip="The library to look at.")],
            outputs=[
                io.Image.Output("image", tooltip="All of it as one picture, to save or to print."),
                io.String.Output("report", tooltip="The same figures as JSON."),
            ],
        )

    @classmethod
    def execute(cls, library: LibraryHandle) -> io.NodeOutput:
        opened = library.open()
        picture = torch.from_numpy(np.asarray(report_picture(opened)).astype(np.float32) / 255)[None]
        figures = json.dumps(report_of(opened), indent=1, ensure_ascii=False)
        return io.NodeOutput(picture, figures, ui=ui.PreviewImage(picture, cls=cls))


NODES = [LibraryReport]
