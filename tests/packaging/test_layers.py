"""The rooms stand in an order, and each file imports only from those before its own: docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The core, from the ground up. A package may import from itself and from what stands before it.
LAYERS = (
    "errors families settings io lora diffusion method library training prompt report backends demo api cli __main__"
).split()
CORE = sorted((ROOT / "seqlora").rglob("*.py"))
MOST_LINES, LONGEST_FUNCTION = 300, 60


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """What a file imports from its own project, as module paths from the root."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (*start, *(node.module.split(".") if node.module else ()))
            yield from ((*module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)


def layer(parts: tuple[str, ...]) -> str:
    return parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", [p for p in CORE if name(p) != "seqlora/__init__.py"], ids=name)
def test_a_file_imports_only_from_rooms_before_its_own(path: Path):
    own = LAYERS.index(layer(path.relative_to(ROOT).parts))
    later = {layer(module) for module in imports(path) if module[0] == "seqlora" and len(module) > 1}
    assert not [other for other in later if LAYERS.index(other) > own]


def test_no_two_files_need_each_other():
    """Also within a room, where the order says nothing."""
    modules = {p.relative_to(ROOT).with_suffix("").parts: p for p in CORE if p.name != "__init__.py"}
    needs = {m: {i[:k] for i in imports(p) for k in (len(i), len(i) - 1) if i[:k] in modules} - {m} for m, p in modules.items()}
    done: set[tuple[str, ...]] = set()
    while ready := [m for m in needs if m not in done and needs[m] <= done]:
        done.update(ready)
    assert done == needs.keys(), f"in a ring: {sorted('.'.join(m) for m in needs.keys() - done)}"


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "support").rglob("*.py")), ids=name)
def test_the_helpers_of_tests_import_no_test_and_no_tool(path: Path):
    others = {module[0] for module in imports(path)} & {"tools", "benchmarks", "demo_model"}
    assert not others
    assert not [module for module in imports(path) if module[0] == "tests" and module[1:2] != ("support",)]


@pytest.mark.parametrize("folder", ["benchmarks", "tools", "demo_model"])
def test_tools_and_benchmarks_import_only_the_helpers_of_tests(folder: str):
    for path in sorted((ROOT / folder).rglob("*.py")):
        taken = [module for module in imports(path) if module[0] == "tests"]
        assert not [module for module in taken if module[1:2] != ("support",)], name(path)


@pytest.mark.parametrize("path", [*CORE, *sorted((ROOT / "nodes").rglob("*.py"))], ids=name)
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= LONGEST_FUNCTION}
    assert not long.keys() - {"define_schema"}, long
