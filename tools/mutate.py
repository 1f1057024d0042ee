"""Proves that the tests notice when the core breaks: `make mutate`.

One line at a time is spoilt in a copy of the repository, and the tests that ought to fail are run there. Ends with 1 if any
mutation passes unnoticed, or if the tests fail without one.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutation(NamedTuple):
    what: str
    function: str  # its qualified name; the file is found
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "flip a sign in the projection",
        "complement",
        "return matrix - earlier @ (earlier.mT @ matrix)",
        "return matrix + earlier @ (earlier.mT @ matrix)",
        "test_manifold",
    ),
    Mutation(
        "drop one concept from a composition",
        "compose",
        "for concept, strength in concepts:",
        "for concept, strength in concepts[:-1]:",
        "test_composition",
    ),
    Mutation(
        "skip the retraction",
        "BilevelOptimizer._move_bases",
        "stack.B.copy_(retract(start + move, constraint.earlier))",
        "stack.B.copy_(start + move)",
        "test_optimizer",
    ),
    Mutation(
        "skip the tangent's second term",
        "tangent",
        "return gradient - basis @ sym(basis.mT @ gradient)",
        "return gradient",
        "test_manifold",
    ),
    Mutation(
        "flip the sign of the penalty on A",
        "Interference.add",
        "stack.grad_A.add_(GammaA @ energy, alpha=2 * strength)",
        "stack.grad_A.add_(GammaA @ energy, alpha=-2 * strength)",
        "test_optimizer",
    ),
    Mutation(
        "flip the sign of the second-order term",
        "BilevelOptimizer._look_ahead",
        "first - xi * (plus - minus)",
        "first + xi * (plus - minus)",
        "test_optimizer",
    ),
    Mutation(
        "look ahead on one batch only",
        "ConceptTrainer._gradients",
        "self._lower_batch if level is Level.LOWER_AGAIN else self.batches.next()",
        "self.batches.next()",
        "test_trainer",
    ),
    Mutation(
        "ignore the context",
        "attached.hook.add",
        "change = change + (x @ earlier_B) @ earlier_A.mT",
        "change = change + 0",
        "test_trainer",
    ),
    Mutation(
        "forget which layers were full",
        "constrain",
        "full.append(name)",
        "pass",
        "test_trainer",
    ),
    Mutation(
        "let planned concepts fill a layer",
        "layer_rank",
        "width // (4 * capacity)",
        "width // capacity",
        "test_trainer",
    ),
    Mutation(
        "forget how many concepts are planned",
        "ConceptTrainer._gradients",
        "self.settings.interference_weight * self.beside.capacity",
        "self.settings.interference_weight",
        "test_library",
    ),
    Mutation(
        "leave the hooks on",
        "attached",
        "handle.remove()",
        "pass",
        "test_trainer",
    ),
    Mutation(
        "start from the directions that matter least",
        "contrastive_basis",
        "inverse_times @ vectors.flip(1)",
        "inverse_times @ vectors",
        "test_basis",
    ),
    Mutation(
        "count the bias as output energy",
        "Recorder._see",
        "base = base - bias.detach().to(base)",
        "base = base - 0 * bias.detach().to(base)",
        "test_moments",
    ),
    Mutation(
        "write alpha 1",
        "to_native",
        "out[name + ALPHA] = torch.tensor(float(a.shape[1]))",
        "out[name + ALPHA] = torch.tensor(1.0)",
        "test_library",
    ),
    Mutation(
        "trust a changed file",
        "read_tensors",
        "if sha256 is not None and hashlib",
        "if False and hashlib",
        "test_library",
    ),
    Mutation(
        "read numbers of any length",
        "parse_json",
        "parse_int=_integer, ",
        "",
        "test_library_files",
    ),
    Mutation(
        "read outside the folder",
        "inside",
        "if not is_within(path, folder):",
        "if False:",
        "test_library",
    ),
    Mutation(
        "believe the manifest's types",
        "_number",
        "type(value) is int and ",
        "",
        "test_library",
    ),
    Mutation(
        "delete before the manifest is written",
        "LibraryWriter.remove",
        "        self.save(concepts=self.library.without(name).concepts)\n        self._delete(gone)",
        "        self._delete(gone)\n        self.save(concepts=self.library.without(name).concepts)",
        "test_library_upkeep",
    ),
    Mutation(
        "let the old version stay",
        "LibraryWriter.add",
        "self.save(concepts=(*others.concepts, record))",
        "self.save(concepts=(*library.concepts, record))",
        "test_library_upkeep",
    ),
    Mutation(
        "keep the old name in the file",
        "LibraryWriter.rename",
        "self._write_concept(replace(record, name=new, file=file), tensors, picture)",
        "replace(self._write_concept(replace(record, file=file), tensors, picture), name=new)",
        "test_library_upkeep",
    ),
    Mutation(
        "verify no orthogonality",
        "check_orthogonal",
        "if entry > ORTHOGONALITY:",
        "if False:",
        "test_library_upkeep",
    ),
    Mutation(
        "delete what cannot be used",
        "_set_aside",
        "        os.replace(file, place)",
        "        file.unlink()",
        "test_library_upkeep",
    ),
    Mutation(
        "take in another version",
        "_fit",
        "if record.id == other.id or collision_key",
        "if False and collision_key",
        "test_library_upkeep",
    ),
    Mutation(
        "take in a stranger",
        "_found",
        "if _kind(described) != _kind(library.manifest):",
        "if False:",
        "test_library_upkeep",
    ),
    Mutation(
        "teach anew beside the old version",
        "_trainer_of",
        "earlier = [job.others.load(name) for name in job.others.names]",
        "earlier = [library.load(name) for name in library.names]",
        "test_library_upkeep",
    ),
    Mutation(
        "go on with other random numbers",
        "ConceptTrainer.load_state_dict",
        "self.rng.set_state(torch.frombuffer",
        "(torch.frombuffer",
        "test_checkpoint",
    ),
    Mutation(
        "go on with the pictures in another order",
        "ConceptTrainer.load_state_dict",
        'self.batches.queues, self._on = counters["queues"], counters["on"]',
        'self._on = counters["on"]',
        "test_checkpoint",
    ),
    Mutation(
        "go on beside no earlier concept",
        "ConceptTrainer.load_state_dict",
        "self.active.select(self._on)",
        "pass",
        "test_checkpoint",
    ),
    Mutation(
        "forget the place in the alternating round",
        "BilevelOptimizer.restore",
        "self.passes, self.turn = passes, turn",
        "self.passes = passes",
        "test_checkpoint",
    ),
    Mutation(
        "forget what Adam remembers",
        "BilevelOptimizer.restore",
        "for i, held in remembered.items() if held}",
        "for i, held in remembered.items() if not held}",
        "test_checkpoint",
    ),
    Mutation(
        "keep a look-ahead that was interrupted",
        "BilevelOptimizer._look_ahead",
        "            for stack, A in zip(self.stacks, start, strict=True):\n                stack.A.copy_(A)",
        "            pass",
        "test_checkpoint",
    ),
    Mutation(
        "lose what an interrupted pass leaves whole",
        "ConceptTrainer._gradients",
        "self._whole = self._counters is not None",
        "pass",
        "test_checkpoint",
    ),
    Mutation(
        "save values that are no numbers",
        "Checkpoint.save",
        "if not all(tensor.isfinite().all() for tensor in tensors.values()):",
        "if False:",
        "test_checkpoint",
    ),
    Mutation(
        "believe a damaged checkpoint",
        "read_bound",
        'if metadata.get("digest") != _digest(text, tensors):',
        "if False:",
        "test_checkpoint",
    ),
    Mutation(
        "go on in another state of the library",
        "read_bound",
        "if found[1] != binding:",
        "if False:",
        "test_checkpoint",
    ),
]


def find(core: Path, mutation: Mutation) -> Path:
    """The file with the function of this name that holds the text, wherever it has moved to. Ends the program where there is
    none, or more than one."""
    found = [
        path
        for path in sorted(core.rglob("*.py"))
        for name, text in functions(path.read_text(encoding="utf-8"))
        if name == mutation.function and text.count(mutation.old) == 1
    ]
    if len(found) != 1:
        raise SystemExit(f"'{mutation.old}' is in {len(found)} functions called {mutation.function}; mend tools/mutate.py.")
    return found[0]


def body_of(source: str, mutation: Mutation) -> str:
    return next(text for name, text in functions(source) if name == mutation.function and mutation.old in text)


def functions(source: str) -> Iterator[tuple[str, str]]:
    """Qualified name and text of every function."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                yield prefix + child.name, "\n".join(lines[child.lineno - 1 : child.end_lineno])
                yield from inside(child, f"{prefix}{child.name}.")
            else:
                yield from inside(child, prefix)

    lines = source.splitlines()
    yield from inside(ast.parse(source), "")


def run_tests(copy: Path, tests: list[str]) -> tuple[int, str]:
    """pytest's exit status (1: tests ran and failed) and the first test that failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"tests/core/{name}.py" for name in tests),
    ]
    env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    failed = re.search(r"^FAILED tests/core/\w+\.py::(\w+)", done.stdout, re.MULTILINE)
    return done.returncode, failed.group(1) if failed else done.stdout[-2000:]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("seqlora", "tests", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)

        status, output = run_tests(copy, sorted({mutation.tests for mutation in MUTATIONS}))
        if status:
            print(f"The tests fail without a mutation: {output}")
            return 1
        print(f"{'mutation':45} {'function':35} {'tests':17} noticed by", flush=True)
        unnoticed = 0
        for mutation in MUTATIONS:
            path = find(copy / "seqlora", mutation)
            text = path.read_text(encoding="utf-8")
            before, found, after = text.partition(body_of(text, mutation))
            path.write_text(before + found.replace(mutation.old, mutation.new) + after, encoding="utf-8")
            status, test = run_tests(copy, [mutation.tests])
            path.write_text(text, encoding="utf-8")
            unnoticed += status != 1
            verdict = test if status == 1 else f"NOBODY (pytest ended with {status})"
            print(f"{mutation.what:45} {mutation.function:35} {mutation.tests:17} {verdict}", flush=True)
        print(f"{len(MUTATIONS) - unnoticed} of {len(MUTATIONS)} mutations noticed")
        return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
