"""What the parts share: children that are forked, so that none has to import torch, and a library that is soon taught."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from seqlora.library.store import Library
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, small_request

torch.set_num_threads(1)
STEPS = QUICK.steps
NAMES = ("cat", "dog")


class Child:
    """A forked process that may say things, one JSON value a line, while it works."""

    def __init__(self, work: Callable[[Callable[[Any], None]], Any]):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            self.pipe = open(reader, encoding="utf-8")
            return
        os.close(reader)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        code = 1
        try:
            work(lambda value: os.write(writer, f"{json.dumps(value)}\n".encode()) and None)
            code = 0
        except BaseException:
            traceback.print_exc(limit=-3)
        finally:
            os._exit(code)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def hear(self) -> Any:
        """The next value, or None at the end."""
        line = self.pipe.readline()
        return json.loads(line) if line.endswith("\n") else None

    def end(self) -> tuple[list[Any], bool]:
        """Whatever it still has to say, and whether it ended well."""
        said = [json.loads(line) for line in self.pipe if line.endswith("\n")]
        self.pipe.close()
        return said, os.waitpid(self.pid, 0)[1] == 0


def in_child(work: Callable[[], Any]) -> Any:
    """The result of work that must not happen in this process: after a backward, forked children could not do their own."""
    said, well = Child(lambda say: say(work())).end()
    if not well:
        raise AssertionError("a child failed, see above")
    return said[0]


@contextmanager
def workplace() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="seqlora-torture-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def taught_library(path: Path, width: int = 32) -> None:
    """Two concepts, with room for more."""
    library = Library.create(path, 2, 8, "attention and mlp")
    for seed, name in enumerate(NAMES):
        library = run_to_end(train_steps(library, small_request(name, seed), QUICK, SmallModel(width))).library


def check(good: bool, what: str) -> None:
    if not good:
        raise AssertionError(what)
