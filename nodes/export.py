"""The node that writes concepts as one ordinary LoRA file."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ..seqlora.library.export import DTYPES, FORMATS, export_composed, export_embeddings
from ..seqlora.lora.compose import parse_selection
from . import host
from .library import LibraryHandle, LibraryType


class ExportLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_ExportLoRA",
            display_name="Export Composed LoRA",
            category="SeqLoRA/library",
            description="Writes any concepts of a library as one LoRA file to output/loras, for other programs or to share. "
            "What concepts have learned for their triggers goes to output/embeddings.",
            search_aliases=["save lora", "merge loras", "convert lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                LibraryType.Input("library", tooltip="The library with the concepts."),
                io.String.Input(
                    "concepts",
                    default="*",
                    multiline=True,
                    tooltip="Which concepts: a line each, 'name' or 'name: 0.8'. '*' is all of them.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="seqlora",
                    tooltip="Start of the file's name in output/loras; a number follows. May name a folder inside.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=next(iter(FORMATS)),
                    tooltip="Whose names the layers get: ComfyUI's, those of kohya's scripts and most web interfaces, or "
                    "diffusers'.",
                ),
                io.Combo.Input(
                    "dtype", options=list(DTYPES), default="fp16", tooltip="fp16 halves the file; fp32 is exact.", advanced=True
                ),
            ],
            outputs=[io.String.Output("filename", tooltip="The file's name as LoRA loaders list it.")],
        )

    @classmethod
    def execute(cls, library: LibraryHandle, concepts: str, filename_prefix: str, format: str, dtype: str) -> io.NodeOutput:
        opened = library.open()
        selection = parse_selection(concepts, opened.names)
        path, name = host.next_lora_path(filename_prefix)
        export_composed(opened, selection, path, format, dtype)
        embeddings = export_embeddings(opened, selection, host.embeddings_folder(name))
        _written.setdefault((concepts, filename_prefix, format, dtype), []).extend([path, *embeddings])
        learned = [opened.find(concept).trigger for concept in selection if opened.vectors(concept)]
        shown = [f"output/loras/{name}"]
        for trigger, file in zip(learned, embeddings, strict=True):
            shown.append(f"instead of {trigger} write embedding:{file.parent.name}/{file.stem}")
        host.say(cls.hidden.unique_id, "\n".join(shown))
        return io.NodeOutput(name, ui=ui.PreviewText("\n".join(shown)))

    @classmethod
    def fingerprint_inputs(
        cls, concepts: str = "", filename_prefix: str = "", format: str = "", dtype: str = "", **_: object
    ) -> int:
        """Another one for each file that this node wrote with these inputs and that is gone."""
        return sum(not path.exists() for path in _written.get((concepts, filename_prefix, format, dtype), ()))


_written: dict[tuple[str, str, str, str], list[Path]] = {}  # by inputs, since the host started


NODES = [ExportLoRA]
