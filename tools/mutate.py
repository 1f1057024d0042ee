"""Proves that the tests notice when the core breaks: `python tools/mutate.py`.

One line at a time is spoilt in a copy of the repository, and the tests that ought to fail are run there. Ends with 1 if any
mutation passes unnoticed, or if the tests fail without one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutation(NamedTuple):
    what: str
    file: str  # in seqlora/
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "flip a sign in the projection",
        "manifold.py",
        "return matrix - earlier @ (earlier.mT @ matrix)",
        "return matrix + earlier @ (earlier.mT @ matrix)",
        "test_manifold",
    ),
    Mutation(
        "drop one concept from a composition",
        "composition.py",
        "for concept, strength in concepts:",
        "for concept, strength in concepts[:-1]:",
        "test_composition",
    ),
    Mutation(
        "skip the retraction",
        "optimizer.py",
        "stack.B.copy_(retract(start + move, constraint.earlier))",
        "stack.B.copy_(start + move)",
        "test_optimizer",
    ),
    Mutation(
        "skip the tangent's second term",
        "manifold.py",
        "return gradient - basis @ sym(basis.mT @ gradient)",
        "return gradient",
        "test_manifold",
    ),
    Mutation(
        "flip the sign of the penalty on A",
        "optimizer.py",
        "A.grad.add_(felt @ energy, alpha=2 * strength)",
        "A.grad.add_(felt @ energy, alpha=-2 * strength)",
        "test_optimizer",
    ),
    Mutation(
        "flip the sign of the second-order term",
        "optimizer.py",
        "first - xi * (plus - minus)",
        "first + xi * (plus - minus)",
        "test_optimizer",
    ),
    Mutation(
        "look ahead on one batch only",
        "trainer.py",
        'lower_batch if level == "lower again" else batches.next()',
        "batches.next()",
        "test_trainer",
    ),
    Mutation(
        "ignore the context",
        "adapter.py",
        "change = change + (x @ earlier_B) @ earlier_A.mT",
        "change = change + 0",
        "test_trainer",
    ),
    Mutation(
        "forget which layers were full",
        "trainer.py",
        "full.append(name)",
        "pass",
        "test_trainer",
    ),
    Mutation(
        "let planned concepts fill a layer",
        "trainer.py",
        "width // (4 * capacity)",
        "width // capacity",
        "test_trainer",
    ),
    Mutation(
        "forget how many concepts are planned",
        "trainer.py",
        "settings.interference_weight * planned",
        "settings.interference_weight",
        "test_library",
    ),
    Mutation(
        "leave the hooks on",
        "adapter.py",
        "handle.remove()",
        "pass",
        "test_trainer",
    ),
    Mutation(
        "start from the directions that matter least",
        "basis.py",
        "inverse_times @ vectors.flip(1)",
        "inverse_times @ vectors",
        "test_basis",
    ),
    Mutation(
        "count the bias as output energy",
        "moments.py",
        "base = base - module.bias",
        "base = base - 0 * module.bias",
        "test_moments",
    ),
    Mutation(
        "write alpha 1",
        "keys.py",
        "out[name + ALPHA] = torch.tensor(float(a.shape[1]))",
        "out[name + ALPHA] = torch.tensor(1.0)",
        "test_library",
    ),
    Mutation(
        "trust a changed file",
        "files.py",
        "if sha256 is not None and hashlib",
        "if False and hashlib",
        "test_library",
    ),
    Mutation(
        "let tensors overlap",
        "files.py",
        "if entry.begin != place:",
        "if False:",
        "test_library_files",
    ),
    Mutation(
        "read numbers of any length",
        "files.py",
        "parse_int=_integer, ",
        "",
        "test_library_files",
    ),
    Mutation(
        "read outside the folder",
        "library.py",
        "if not is_within(path, self.path):",
        "if False:",
        "test_library",
    ),
    Mutation(
        "believe the manifest's types",
        "manifest.py",
        "type(value) is int and ",
        "",
        "test_library",
    ),
    Mutation(
        "delete before the manifest is written",
        "library.py",
        "        library = self.without(name).save()\n        self._delete(self.find(name))",
        "        self._delete(self.find(name))\n        library = self.without(name).save()",
        "test_library_upkeep",
    ),
    Mutation(
        "let the old version stay",
        "library.py",
        "concepts=(*others.concepts, record)).save()",
        "concepts=(*self.concepts, record)).save()",
        "test_library_upkeep",
    ),
    Mutation(
        "keep the old name in the file",
        "library.py",
        "self._write_concept(replace(record, name=new, file=file), tensors, picture)",
        "replace(self._write_concept(replace(record, file=file), tensors, picture), name=new)",
        "test_library_upkeep",
    ),
    Mutation(
        "verify no orthogonality",
        "verification.py",
        "if entry > ORTHOGONALITY:",
        "if False:",
        "test_library_upkeep",
    ),
    Mutation(
        "delete what cannot be used",
        "upkeep.py",
        "        os.replace(file, place)",
        "        file.unlink()",
        "test_library_upkeep",
    ),
    Mutation(
        "take in another version",
        "upkeep.py",
        "if record.id == other.id or collision_key",
        "if False and collision_key",
        "test_library_upkeep",
    ),
    Mutation(
        "take in a stranger",
        "upkeep.py",
        "if _kind(described) != _kind(library):",
        "if False:",
        "test_library_upkeep",
    ),
    Mutation(
        "teach anew beside the old version",
        "teaching.py",
        "earlier = [others.load(name) for name in others.names]",
        "earlier = [library.load(name) for name in library.names]",
        "test_library_upkeep",
    ),
    Mutation(
        "go on with other random numbers",
        "trainer.py",
        "rng.set_state(torch.frombuffer",
        "(torch.frombuffer",
        "test_checkpoint",
    ),
    Mutation(
        "go on with the pictures in another order",
        "trainer.py",
        'batches.queues, on = place["queues"], place["on"]',
        'on = place["on"]',
        "test_checkpoint",
    ),
    Mutation(
        "go on beside no earlier concept",
        "trainer.py",
        "        context.draw(on)\n        state = None",
        "        state = None",
        "test_checkpoint",
    ),
    Mutation(
        "forget the place in the alternating round",
        "optimizer.py",
        "self.passes, self.turn = passes, turn",
        "self.passes = passes",
        "test_checkpoint",
    ),
    Mutation(
        "forget what Adam remembers",
        "optimizer.py",
        "for i, held in remembered.items() if held}",
        "for i, held in remembered.items() if not held}",
        "test_checkpoint",
    ),
    Mutation(
        "keep a look-ahead that was interrupted",
        "optimizer.py",
        "            for stack, A in zip(self.stacks, start, strict=True):\n                stack.A.copy_(A)",
        "            pass",
        "test_checkpoint",
    ),
    Mutation(
        "lose what an interrupted pass leaves whole",
        "trainer.py",
        "checkpoint.whole = True",
        "pass",
        "test_checkpoint",
    ),
    Mutation(
        "save values that are no numbers",
        "checkpoint.py",
        "if not all(tensor.isfinite().all() for tensor in tensors.values()):",
        "if False:",
        "test_checkpoint",
    ),
    Mutation(
        "believe a damaged checkpoint",
        "checkpoint.py",
        'if metadata.get("digest") != _digest(text, tensors):',
        "if False:",
        "test_checkpoint",
    ),
    Mutation(
        "go on in another state of the library",
        "checkpoint.py",
        'if about["binding"] != binding:',
        "if False:",
        "test_checkpoint",
    ),
]


def run_tests(copy: Path, tests: list[str]) -> tuple[int, str]:
    """pytest's exit status (1: tests ran and failed) and the first test that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{name}.py" for name in tests)]
    env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    failed = re.search(r"^FAILED tests/\w+\.py::(\w+)", done.stdout, re.MULTILINE)
    return done.returncode, failed.group(1) if failed else done.stdout[-2000:]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("seqlora", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)

        status, output = run_tests(copy, sorted({mutation.tests for mutation in MUTATIONS}))
        if status:
            print(f"The tests fail without a mutation: {output}")
            return 1
        print(f"{'mutation':45} {'file':15} {'tests':17} noticed by", flush=True)
        unnoticed = 0
        for mutation in MUTATIONS:
            path = copy / "seqlora" / mutation.file
            text = path.read_text(encoding="utf-8")
            if text.count(mutation.old) != 1:
                print(f"'{mutation.old}' is in {mutation.file} {text.count(mutation.old)} times; mend tools/mutate.py.")
                return 1
            path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
            status, test = run_tests(copy, [mutation.tests])
            path.write_text(text, encoding="utf-8")
            unnoticed += status != 1
            verdict = test if status == 1 else f"NOBODY (pytest ended with {status})"
            print(f"{mutation.what:45} {mutation.file:15} {mutation.tests:17} {verdict}", flush=True)
        print(f"{len(MUTATIONS) - unnoticed} of {len(MUTATIONS)} mutations noticed")
        return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
