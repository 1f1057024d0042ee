"""Manifests, concept files, moments and checkpoints, spoilt at random: each loads as it should or is refused in a sentence.

Nothing else may be raised, and none may take longer than a second of processor time or 200 MB. The manifest's hashes are made
to agree with the spoilt file, since otherwise nothing behind them would be looked at; a checkpoint carries its own.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from seqlora.errors import SeqLoRAError
from seqlora.library.repair import repair
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.library.view import PRIOR
from seqlora.library.writer import MANIFEST
from seqlora.training import checkpoint
from seqlora.training.prior import FOLDER as PRIORS
from seqlora.training.train import train_steps
from tests.robustness.common import check, in_child, taught_library, workplace
from tests.support.small import QUICK, SmallModel, contents, small_request

COUNT = 50_000
SECONDS, MEGABYTES = 1.0, 200
WHOLE_CHECK = 100  # one in so many libraries with a spoilt file is also verified and repaired as a whole
JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**18,
    1e308,
    0.5,
    "",
    "x",
    "../x",
    "\x00",
    "\ud800",
    "x" * 5000,
    [],
    {},
]
JUNK += [[0], [[]], {"a": 1}, ["x"] * 300, [2**62, 2**62], "F32", "F64", "concepts/0001-cat.safetensors"]


# -- the mutator


def spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    kind, out = rng.randrange(7), bytearray(data)
    place = rng.randrange(len(out) or 1)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 16))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[place:]
    elif kind == 2:
        out += rng.randbytes(rng.choice((1, 8, 5000)))
    elif kind == 3:  # the length of a safetensors header
        out[:8] = rng.choice((0, 1, len(out), len(out) - 8, 2**31, 2**62, 2**64 - 1, rng.randrange(2**20))).to_bytes(
            8, "little"
        )
    elif kind == 4:
        out[place : place + rng.choice((1, 8, 64))] = rng.randbytes(rng.choice((0, 1, 8, 64)))
    elif kind == 5:
        out[place : place + 64] = bytes(64)
    else:
        other = rng.randrange(len(out))
        out[place : place + 16], out[other : other + 16] = out[other : other + 16], out[place : place + 16]
    return bytes(out)


def spoil_json(text: str, rng: random.Random) -> str:
    kind = rng.randrange(8)
    if kind == 0:
        place = rng.randrange(len(text))
        return (
            text[:place]
            + rng.choice(("[" * 100_000, '{"a":' * 50_000, "9" * 200_000, "0." + "1" * 200_000, "NaN", "1e999", "\\"))
            + text[place:]
        )
    if kind == 1:
        return rng.choice(
            ("[" * 400_000, "[]", "null", "1", '"x"', "{}", "[" + "{}," * 300_000 + "1]", '{"a":"' + "x" * 10**6 + '"}')
        )
    root = json.loads(text)
    places: list[tuple[Any, Any]] = []
    collect(root, places)
    for _ in range(rng.choice((1, 1, 2, 5))):
        holder, key = rng.choice(places)
        if kind == 2 and isinstance(holder, dict):
            holder.pop(key, None)
        elif kind == 3 and isinstance(holder, dict):
            holder[rng.choice(("", "surprise", "__metadata__", "x" * 2000))] = rng.choice(JUNK)
        elif kind == 4:
            holder[key] = rng.choice(rng.choice(places)[0:1])  # another part of the same
        elif isinstance(holder, list) and key >= len(holder):
            continue
        else:
            holder[key] = rng.choice(JUNK)
    try:
        return json.dumps(root)
    except (ValueError, RecursionError):  # it contains itself now
        return text[: rng.randrange(len(text))]


def collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key in value if isinstance(value, dict) else range(len(value)):
        places.append((value, key))
        if isinstance(value[key], (dict, list)):
            collect(value[key], places)


def spoil_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Its bytes, its header, or a text inside its header."""
    if rng.random() < 0.4:
        return spoil_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode()
    if rng.random() < 0.5:
        header = spoil_json(header, rng)
    else:
        parsed = json.loads(header)
        key = rng.choice([key for key, text in parsed["__metadata__"].items() if text.startswith(("{", "["))])
        parsed["__metadata__"][key] = spoil_json(parsed["__metadata__"][key], rng)
        header = json.dumps(parsed)
    raw = header.encode(errors="surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + data[8 + length :]


# -- what is done with them


class Target:
    """A file of a library, and what reading it means."""

    def __init__(self, path: Path, spoil: Callable[[bytes, random.Random], bytes], read: Callable[[Path], Any]):
        self.path, self.spoil, self.read = path, spoil, read
        self.data = path.read_bytes()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sound(concept: dict[str, Any]) -> None:
    for A, B in concept.values():
        check(bool(A.isfinite().all()) and bool(B.isfinite().all()), "values that are no numbers were let through")
        check(float((B.float().mT @ B.float() - torch.eye(B.shape[1])).abs().max()) <= 1e-3, "a basis was let through")


def targets(path: Path, binding: str) -> dict[str, Target]:
    library = Library.open(path)
    cat, dog = library.concepts

    def manifest(file: Path) -> None:
        found = Library.open(path)
        for name in found.names:
            sound(found.load(name))
        found.moments_sum()
        found.prior()

    def concept(file: Path) -> None:
        sound(library.having(concepts=(replace(cat, sha256=digest(file)), dog)).load("cat"))

    def moments(file: Path) -> None:
        total = library.having(concepts=(replace(cat, moments_sha256=digest(file)), dog)).moments_sum()
        check(all(m.sketch.isfinite().all() for m in total.by_input.values()), "moments were let through")

    def prior(file: Path) -> None:
        library.having(prior_sha256=digest(file)).prior()

    file = next((path / checkpoint.FOLDER).glob("*.safetensors"))
    return {
        "manifests": Target(path / MANIFEST, spoil_manifest, manifest),
        "concept files": Target(path / cat.file, spoil_safetensors, concept),
        "moments": Target(path / "moments" / "0001.safetensors", spoil_safetensors, moments),
        "moments of the model": Target(path / PRIOR, spoil_safetensors, prior),
        "checkpoints": Target(file, spoil_safetensors, lambda file: checkpoint.read(file, binding)),
    }


def spoil_manifest(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return spoil_bytes(data, rng)
    return spoil_json(data.decode(), rng).encode(errors="surrogatepass")


def as_a_whole(path: Path, aside: Path) -> None:
    """The commands that a person runs when something is wrong; whatever they do, they do inside the library."""
    shutil.copytree(path, aside)
    try:
        verify(aside)
        repair(aside)
    except SeqLoRAError as error:
        sentence(error)
    finally:
        shutil.rmtree(aside)


def sentence(error: SeqLoRAError) -> None:
    text = str(error)
    check(text.endswith(".") and "\n" not in text and len(text) < 2000, f"no sentence: {text[:300]}")


def work(path: Path, binding: str, count: int, seed: int) -> dict[str, Any]:
    rng, figures, longest = random.Random(seed), Counter(), 0.0
    chosen = targets(path, binding)
    before, outside = contents(path), contents(path.parent / "beside")
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        name = list(chosen)[number % len(chosen)]
        target = chosen[name]
        target.path.write_bytes(target.spoil(target.data, rng))
        began = time.process_time()
        try:
            target.read(target.path)
            figures[f"{name} read"] += 1
        except SeqLoRAError as error:
            sentence(error)
            figures[f"{name} refused"] += 1
        except Exception as error:
            keep = Path("/tmp") / f"mutation-{seed}-{number}"
            shutil.copy(target.path, keep)
            raise AssertionError(f"{name}: {type(error).__name__}: {str(error)[:300]}; the file is {keep}") from error
        longest = max(longest, time.process_time() - began)
        if number % WHOLE_CHECK < 5:
            as_a_whole(path, path.parent / "aside")
        target.path.write_bytes(target.data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
    check(contents(path) == before and contents(path.parent / "beside") == outside, "a file beside was written")
    check({entry.name for entry in path.parent.iterdir()} == {path.name, "beside", PRIORS}, "a file was written outside")
    return {**figures, "longest": longest, "grown": grown}


def prepare(path: Path) -> str:
    """A library and an unfinished training; returns what its checkpoint is bound to."""
    taught_library(path)
    steps = train_steps(Library.open(path), small_request("bird", 7), QUICK, SmallModel())
    for progress in steps:
        if progress.phase == "training" and progress.step == 3:
            break
    steps.close()
    (file,) = (path / checkpoint.FOLDER).glob("*.safetensors")
    (path.parent / "beside").mkdir()
    (path.parent / "beside" / "file").write_text("not ours")
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["seqlora"])["binding"]


def run(count: int = COUNT, seed: int = 0) -> str:
    with workplace() as folder:
        path = folder / "pets"
        binding = in_child(lambda: prepare(path))
        figures = in_child(lambda: work(path, binding, count, seed))
    longest, grown = figures.pop("longest"), figures.pop("grown")
    check(longest <= SECONDS, f"one took {longest:.2f} s")
    check(grown <= MEGABYTES, f"memory grew by {grown:.0f} MB")
    read = sum(number for name, number in figures.items() if name.endswith("read"))
    each = ", ".join(f"{number} {name}" for name, number in sorted(figures.items()))
    return (
        f"{count} spoilt files: {read} read, {count - read} refused in a sentence ({each}); nothing else raised, nothing "
        f"written elsewhere; at most {longest:.2f} s and {grown:.0f} MB"
    )
