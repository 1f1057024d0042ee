"""Nodes that make and open concept libraries, and the handle that travels between nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

from comfy_api.latest import io

from ..seqlora.errors import SeqLoRAError
from ..seqlora.io.text import literal
from ..seqlora.library.manifest import Record
from ..seqlora.library.store import Library
from ..seqlora.library.writer import MANIFEST
from ..seqlora.lora.types import Triggers
from ..seqlora.settings import LIBRARY_OPTIONS
from . import host
from .inputs import option_inputs

CATEGORY = "SeqLoRA/library"
LibraryType = io.Custom("SEQLORA_LIBRARY")


@dataclass(frozen=True)
class LibraryHandle:
    """Which library, and in which state: small enough for the host to cache."""

    name: str
    path: str
    digest: str

    @classmethod
    def of(cls, library: Library) -> LibraryHandle:
        note_state(library.path.name, library.digest)
        return cls(library.path.name, str(library.path), library.digest)

    def open(self) -> Library:
        """The library as it is now, by its name: a path that came from elsewhere is not followed."""
        return Library.open(host.library_path(self.name))


def say_what_is_hidden(node: str | None, name: str) -> None:
    """A library of the same name in another place cannot be reached."""
    remark = host.hidden_remark(name)
    if remark:
        host.remark(node, remark)


def tell_changed(name: str) -> None:
    """Editors that show this library are to load it anew."""
    state_of(name)
    host.send("seqlora.library", {"name": name})


def triggers_of(records: Iterable[Record]) -> str:
    """A line each, with what is to be written in a prompt of the host."""
    return "\n".join(f"{record.name}: {literal(record.subject)}" for record in records)


def remark_on_triggers(clip: Any, triggers: Triggers) -> str:
    """What should be known where concepts with these learned triggers are used with this CLIP, or none; "" for nothing."""
    if triggers and clip is None:
        words = ", ".join(f"'{word}'" for word in triggers)
        return f"What was learned for {words} is only in prompts whose text encoder comes from this node: connect clip."
    if triggers and host.with_own_words(clip, triggers) is clip:
        return "This text encoder does not take what was learned for the triggers; connect the one that belongs to the model."
    return ""


class CreateLibrary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_CreateLibrary",
            display_name="Create Concept Library",
            category=CATEGORY,
            description="Makes an empty library in models/seqlora, or opens the one of that name. All concepts of a library "
            "are taught to be used together, on one base model.",
            search_aliases=["new library", "concept library", "lora library"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input(
                    "name", default="my concepts", tooltip="The library's name; also its folder in models/seqlora."
                ),
                *option_inputs(LIBRARY_OPTIONS.values(), optional=False),
            ],
            outputs=[LibraryType.Output("library", tooltip="The library, to teach concepts into.")],
        )

    @classmethod
    def execute(cls, name: str, rank: int, capacity: int, targets: str) -> io.NodeOutput:
        path = host.new_library_path(name)
        known = (path / MANIFEST).exists()
        library = Library.create(path, rank, capacity, targets)
        if not known:
            tell_changed(library.path.name)
        say_what_is_hidden(cls.hidden.unique_id, library.path.name)
        return io.NodeOutput(LibraryHandle.of(library))

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **_: object) -> str:
        return fingerprint_of(name)


class LoadLibrary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_LoadLibrary",
            display_name="Load Concept Library",
            category=CATEGORY,
            description="Opens a library from models/seqlora, to compose its concepts or to teach more.",
            search_aliases=["open library", "concept library", "lora library"],
            hidden=[io.Hidden.unique_id],
            inputs=[io.Combo.Input("name", options=host.library_names(), tooltip="A library in models/seqlora.")],
            outputs=[
                LibraryType.Output("library", tooltip="The library."),
                io.String.Output("triggers", tooltip="One line for each concept: its name, trigger and class word."),
            ],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        library = Library.open(host.library_path(name))
        say_what_is_hidden(cls.hidden.unique_id, library.path.name)
        return io.NodeOutput(LibraryHandle.of(library), triggers_of(library.concepts))

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None) -> str:
        return fingerprint_of(name)

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        known = host.library_names()
        if name is None or name in known:  # None: it comes from another node, and is looked for when it is there
            return True
        return f"There is no library '{name}' in models/seqlora; there is: {', '.join(known) or 'none yet, create one first'}."


# What the host's cache may take for unchanged. A digest alone would not do: a library from which a concept was removed looks
# like it did before that concept was taught, and the host would report what is gone as done.
_states: dict[str, tuple[str, int]] = {}  # library -> its digest as last seen, and how often that has changed
_states_lock = Lock()  # the server's thread sees changes too


def note_state(name: str, digest: str) -> str:
    """A text for the library's present state that no earlier state had."""
    with _states_lock:
        seen, changes = _states.get(name, (digest, 0))
        _states[name] = (digest, changes + (digest != seen))
        return f"{digest} {_states[name][1]}"


def state_of(name: str) -> str:
    try:
        path = host.library_path(name)
        digest = Library.open(path).digest if (path / MANIFEST).is_file() else "none"
    except SeqLoRAError as error:  # the node itself will say so when it runs
        digest = str(error)
    return note_state(name, digest)


def fingerprint_of(name: str | None) -> str:
    """For a node that opens the library of this name; without one (another node gives it) that of all libraries."""
    if name is not None:
        return state_of(name)
    return "\n".join(f"{known}: {state_of(known)}" for known in sorted({*host.library_names(), *_states}))


NODES = [CreateLibrary, LoadLibrary]
