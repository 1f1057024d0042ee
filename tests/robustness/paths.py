"""Names and links that would lead out of a library: refused by the core, the command line and, where one is found, ComfyUI."""

from __future__ import annotations

import contextlib
import io
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from seqlora.cli.main import main
from seqlora.errors import SeqLoRAError
from seqlora.io.names import checked_name
from seqlora.library.copy import copy
from seqlora.library.lock import LOCK
from seqlora.library.repair import repair
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.library.view import PRIOR
from seqlora.library.writer import MANIFEST, LibraryWriter
from tests.robustness.common import check, in_child, taught_library, workplace
from tests.support.hosts import HostServer, PromptRefusedError, error_message, find_host
from tests.support.small import contents

COUNT = 1  # once is all there is to it
NAMES = [
    *("", " ", ".", "..", "../x", "../../etc/x", "a/../../x", "/etc/passwd", "/", "~/../x/", "./x", "x/", "x/.."),
    *(
        "\\x",
        "..\\x",
        "\\\\host\\share",
        "//host/share",
        "\\\\?\\C:\\x",
        "C:\\x",
        "C:x",
        "c:",
        "x:stream",
        "file:///etc/passwd",
    ),
    *("\x00", "x\x00.safetensors", "\x00../x", "x\ny", "x\ry", "x\ty", "\x1b[2J", "x\x7f", "x\u2028y"),
    *("con", "CON", "Con.txt", "prn", "aux.", "NUL", "nul.x", "com1", "COM9.tar.gz", "lpt1", "COM\u00b9", "CONIN$", "con .x"),
    *(
        "\uff0e\uff0e",
        "\u2025",
        "\u2024\u2024",
        "\u2024x",
        "a\u2044b",
        "a\u2215b",
        "a\u29f8b",
        "a\uff0fb",
        "a\uff3cb",
        "a\u2216b",
    ),
    *("a\uff1ab", "a\u2236b", "\uff43\uff4f\uff4e", "\u202ecod", "\u200d..", ".\u200c.", "\ufeff..", "a\u200bb", "\ud800"),
    *(".hidden", ".lock", "x.", "x. ", "a*", "a?", 'a"', "<a>", "a|b", "#x", "x" * 65, "\U0001f600" * 64, "x" * 100_000),
]
FILES = ["../x", "concepts/../../x", "/etc/passwd", "concepts/\x00", "concepts/link", "concepts", ".", "\\\\host\\x", "x" * 900]


def refused(action: Callable[[], Any]) -> bool:
    try:
        action()
    except SeqLoRAError:
        return True
    return False


def by_command(*args: str | Path) -> bool:
    """Whether the command line ended with a sentence (1) or, for what no argument can be, its usage (2)."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return code in (1, 2)


def names(folder: Path, path: Path) -> int:
    """Every name at every place of the core and of the command line."""
    library, tries = Library.open(path), 0
    for name in NAMES:
        actions: list[Callable[[], Any]] = [
            lambda n=name: checked_name(n, "name"),
            lambda n=name: Library.create(folder / checked_name(n, "library name"), 2, 8, "attention"),
            lambda n=name: library.free_name(n),
            lambda n=name: LibraryWriter(library).rename("cat", n),
            lambda n=name: LibraryWriter(library).remove(n),
            lambda n=name: library.load(n),
            lambda n=name: library.thumbnail(n),
            lambda n=name: copy(library, [n], folder / "part"),
        ]
        for number, action in enumerate(actions):
            check(refused(action), f"{name[:40]!r} was let through at place {number}")
        check("\x00" in name or by_command("rename", path, "cat", name), f"rename took {name[:40]!r}")
        check("\x00" in name or by_command("remove", path, name), f"remove took {name[:40]!r}")
        tries += len(actions) + 2 * ("\x00" not in name)
    return tries


def tampered(path: Path) -> int:
    """Every file name in the manifest, opened and removed."""
    library = Library.open(path)
    (path / "concepts" / "link").symlink_to(path.parent / "secret")
    cat, dog = library.concepts
    for file in FILES:
        listed = library.having(concepts=(replace(cat, file=file), dog))
        check(refused(lambda one=listed: one.load("cat")), f"{file[:40]!r} was read")
        removed = not refused(lambda one=listed: LibraryWriter(one).remove("cat"))
        check(removed, f"a concept with {file[:40]!r} cannot be removed")
        LibraryWriter(library).save()
    return 2 * len(FILES)


def linked(folder: Path, template: Path) -> int:
    """Every file and folder of a library, replaced by a link to its like outside."""
    places = [MANIFEST, LOCK, "concepts", "moments", PRIOR]
    places += ["concepts/0001-cat.safetensors", "moments/0001.safetensors"]
    for place in places:
        path, outside = folder / "linked", folder / "outside"
        shutil.copytree(template, path)
        shutil.move(path / place, outside)
        (path / place).symlink_to(outside)
        before = outside.read_bytes() if outside.is_file() else contents(outside)
        check(place == LOCK or verify(path) != [], f"{place} leads out and nobody says so")
        for action in (
            lambda p=path: LibraryWriter(Library.open(p)).remove("cat"),
            lambda p=path: LibraryWriter(Library.open(p)).rename("dog", "x"),
            lambda p=path: repair(p),
        ):
            with contextlib.suppress(SeqLoRAError):
                action()
        check((outside.read_bytes() if outside.is_file() else contents(outside)) == before, f"{place} was followed")
        shutil.rmtree(path)
        shutil.rmtree(outside) if outside.is_dir() else outside.unlink()
    return 4 * len(places)


def through_comfyui(template: Path) -> int:
    """Every name at every node that takes one, and in the addresses of the pack's routes."""
    tries = 0
    with HostServer() as server:
        shutil.copytree(template, server.models_dir / "seqlora" / "pets")
        before = contents(server.base / "models")
        for name in NAMES:
            create = {"name": name, "rank": 4, "capacity": 8, "targets": "attention"}
            load = {"load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": "pets"}}}
            prompts: list[dict[str, Any]] = [
                {
                    "create": {"class_type": "SeqLoRA_CreateLibrary", "inputs": create},
                    "out": {"class_type": "SeqLoRA_VerifyLibrary", "inputs": {"library": ["create", 0]}},
                },
                {
                    "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": name}},
                    "out": {"class_type": "SeqLoRA_VerifyLibrary", "inputs": {"library": ["load", 0]}},
                },
                load
                | {"out": {"class_type": "SeqLoRA_RemoveConcept", "inputs": {"library": ["load", 0], "concept_name": name}}},
            ]
            for number, prompt in enumerate(prompts):
                try:
                    told = error_message(server.wait(server.post_prompt(prompt)))
                except PromptRefusedError as error:
                    told = str(error)
                check(bool(told), f"a node took {name[:40]!r} ({number})")
            quoted = urllib.parse.quote(name, safe="", errors="replace")
            if len(quoted) < 5000:
                try:
                    server.post(f"/seqlora/train/{quoted}/keep", {})
                    check(False, f"a route took {name[:40]!r}")
                except urllib.error.HTTPError as error:
                    check(error.code in (400, 404, 405), f"a route answered {error.code} to {name[:40]!r}")
            tries += len(prompts) + (len(quoted) < 5000)
        check(contents(server.base / "models") == before, "a file was written or changed")
    return tries


def run(count: int = COUNT, seed: int = 0, comfyui: bool = True) -> str:
    with workplace() as folder:
        template, path = folder / "template", folder / "in" / "pets"
        in_child(lambda: taught_library(template))
        shutil.copytree(template, path)
        (folder / "in" / "secret").write_text("not ours")
        before = contents(folder / "in")
        tries = names(folder / "in", path)
        check(contents(folder / "in") == before, "a name left something behind")
        changed = tampered(path)
        check((folder / "in" / "secret").read_text() == "not ours", "a file outside was touched")
        links = linked(folder, template)
        hosted = through_comfyui(template) if comfyui and find_host() else 0
    where = f", {hosted} at ComfyUI's nodes and routes" if hosted else " (no ComfyUI)"
    return f"{tries} names, {changed} tampered manifests, {links} uses of links{where}: all refused, nothing outside touched"
