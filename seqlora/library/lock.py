"""Whose turn it is to write to a library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import SeqLoRAError
from ..io.atomic import is_within, remedy

LOCK = ".lock"
PATIENCE = 5.0  # seconds that short work waits for a training


class LibraryLock:
    """The right to write to a library. It is held for the whole of a training: concept t must be orthogonal to 1 .. t-1.

        lock = LibraryLock(library.path)
        while not lock.acquire(timeout=0.5):
            ...  # tell that another training is at work; leave if the user cancels
        with library.writing(lock) as writer:
            ...  # writer.library is as it is now, with what the others taught meanwhile

    The system takes the right away from a process that dies.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = FileLock(str(path / LOCK), thread_local=False)  # a generator may be closed by another thread

    def acquire(self, timeout: float) -> bool:
        """Waits up to so many seconds; whether it is ours now. Raises SeqLoRAError where there is no folder, or no writing."""
        if not self.path.is_dir():  # the lock would make one
            raise SeqLoRAError(f"There is no library at {self.path}", "create it first")
        if not is_within(self.path / LOCK, self.path):
            raise SeqLoRAError(f"{self.path / LOCK} leads out of the library's folder", "remove it")
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            return False
        except OSError as error:
            raise SeqLoRAError(f"Could not write to {self.path} ({error.strerror})", remedy(error)) from error
        return True

    def acquire_soon(self) -> None:
        """For work that takes no time. Raises SeqLoRAError where a training does not let go within PATIENCE seconds."""
        if not self.acquire(timeout=PATIENCE):
            raise SeqLoRAError(
                f"A training is writing to library '{self.path.name}'", "wait until it ends or cancel it, then try again"
            )

    def release(self) -> None:
        self._lock.release()

    @contextmanager
    def short(self) -> Iterator[None]:
        """As `acquire_soon`, and released at the end."""
        self.acquire_soon()
        try:
            yield
        finally:
            self.release()
