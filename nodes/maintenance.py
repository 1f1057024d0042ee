"""Nodes that take care of a library: remove a concept, check all files."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..seqlora.library.verify import verify
from . import host
from .library import CATEGORY, LibraryHandle, LibraryType, tell_changed


class RemoveConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_RemoveConcept",
            display_name="Remove Concept",
            category=CATEGORY,
            description="Deletes one concept from a library. All others stay exactly as they are. This cannot be undone.",
            search_aliases=["delete concept", "forget concept", "unlearn"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                LibraryType.Input("library", tooltip="The library that the concept is in."),
                io.String.Input("concept_name", default="", tooltip="What the concept is called in the library."),
            ],
            outputs=[LibraryType.Output("library", tooltip="The library without the concept.")],
        )

    @classmethod
    def execute(cls, library: LibraryHandle, concept_name: str) -> io.NodeOutput:
        with library.open().writing() as writer:
            name = writer.library.known_as(concept_name)
            there = name in writer.library.names
            left = writer.remove(name) if there else writer.library
        tell_changed(left.path.name)
        done = f"removed {name}" if there else f"there is no concept '{name}' (any more); nothing was removed"
        text = f"{done}\nlibrary {left.path.name}: {', '.join(left.names) or 'no concepts'}"
        host.say(cls.hidden.unique_id, text)
        return io.NodeOutput(LibraryHandle.of(left), ui=ui.PreviewText(text))


class VerifyLibrary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_VerifyLibrary",
            display_name="Verify Concept Library",
            category=CATEGORY,
            description="Reads every file of a library and says what is damaged, missing or left over, and what to do.",
            search_aliases=["check library", "library integrity", "validate concepts"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[LibraryType.Input("library", tooltip="The library to check.")],
            outputs=[
                io.String.Output("report", tooltip="A line for each thing that is wrong."),
                io.Int.Output("problems", tooltip="How many there are; 0 if all is well."),
            ],
        )

    @classmethod
    def execute(cls, library: LibraryHandle) -> io.NodeOutput:
        findings = verify(library.open().path)
        report = "\n".join(findings) or f"{library.name}: all files are as they should be"
        host.say(cls.hidden.unique_id, report)
        return io.NodeOutput(report, len(findings), ui=ui.PreviewText(report))

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> float:
        return float("nan")  # a new one each time equals nothing: files change behind the manifest's back


NODES = [RemoveConcept, VerifyLibrary]
