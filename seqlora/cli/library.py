"""The command line's care of libraries: `seqlora info | remove | rename | verify | repair | copy | pack | unpack`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..errors import SeqLoRAError
from ..library.bundle import SUFFIX, name_of, pack, unpack
from ..library.copy import copy
from ..library.repair import repair
from ..library.store import Library
from ..library.verify import verify
from .arguments import Command, folder


def add_commands(command: Command) -> None:
    def made(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = command(name, run, about)
        sub.add_argument("library", type=folder, help="the library's folder")
        return sub

    made("info", info, "list a library")

    sub = made("remove", remove_concepts, "delete concepts; the others stay exactly as they are")
    sub.add_argument("concepts", nargs="+")

    sub = made("rename", rename_concept, "call a concept something else")
    sub.add_argument("concept")
    sub.add_argument("new_name")

    made("verify", verify_library, "check every file of a library; says what to do about each that is not as it should be")
    made("repair", repair_library, "rebuild the manifest from the concept files; what cannot be used goes to damaged/")

    sub = made("copy", copy_concepts, "make a new library of some of the concepts")
    sub.add_argument("to", type=folder, help="the new library's folder")
    sub.add_argument("concepts", nargs="+")

    sub = made("pack", pack_library, "write a library to one file, to hand on or to keep")
    sub.add_argument("file", nargs="?", type=Path, help="by default the library's name with .zip, here")

    sub = command("unpack", unpack_library, "make a library of such a file, checked before it is there")
    sub.add_argument("file", type=Path)
    sub.add_argument("library", nargs="?", type=folder, help="the library's folder; by default its own name, here")


def info(args: argparse.Namespace) -> None:
    library = Library.open(args.library)
    family = library.base.family if library.base else "no model yet"
    print(f"{library.path.name}: {len(library.concepts)} of {library.capacity} concepts, rank {library.rank}, {family}")
    for record in library.concepts:
        full = f", {len(record.full_layers)} layers were full" if record.full_layers else ""
        print(f"  {record.name}: '{record.subject}', {record.created}{full}")


def remove_concepts(args: argparse.Namespace) -> None:
    with Library.open(args.library).writing() as writer:
        for name in args.concepts:
            writer.library.find(name)  # before any is deleted
        for name in args.concepts:
            writer.remove(name)
    library = writer.library
    print(f"{library.path.name}: {', '.join(library.names) or 'no concepts'}")


def rename_concept(args: argparse.Namespace) -> None:
    with Library.open(args.library).writing() as writer:
        library = writer.rename(args.concept, args.new_name)
    print(f"{library.path.name}: {', '.join(library.names)}")


def verify_library(args: argparse.Namespace) -> None:
    _tell(args.library)


def repair_library(args: argparse.Namespace) -> None:
    for sentence in repair(args.library)[1]:
        print(sentence)
    _tell(args.library)


def copy_concepts(args: argparse.Namespace) -> None:
    library = copy(Library.open(args.library), args.concepts, args.to)
    print(f"{library.path}: {', '.join(library.names)}")


def pack_library(args: argparse.Namespace) -> None:
    library = Library.open(args.library)
    print(pack(library, args.file or Path(library.path.name + SUFFIX)))


def unpack_library(args: argparse.Namespace) -> None:
    library = unpack(args.file, args.library or Path(name_of(args.file)).resolve())
    print(f"{library.path}: {', '.join(library.names) or 'no concepts'}")


def _tell(path: Path) -> None:
    """Raises SeqLoRAError, and so ends with 1, where something is wrong."""
    findings = verify(path)
    for finding in findings:
        print(finding)
    if findings:
        raise SeqLoRAError(f"Library '{path.name}' is not as it should be", "see above")
    print(f"{path.name}: all files are as they should be")
