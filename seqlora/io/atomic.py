"""Files that are either whole or not there: written beside, synced, renamed."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from ..errors import SeqLoRAError

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
RESTORE = "restore it from a copy"


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file atomically. Raises SeqLoRAError where the disk refuses; then the old file is still there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise SeqLoRAError(f"Could not write {path} ({error.strerror})", remedy(error)) from error
    _sync_folder(path.parent)


def remedy(error: OSError) -> str:
    """What to do about a disk that refused."""
    if error.errno in FULL:
        return "the disk is full, free some space and try again"
    if error.errno in FORBIDDEN:
        return "the folder is read-only, change its permissions or use another one"
    return "check the disk's space and permissions"


def _sync_folder(folder: Path) -> None:
    """The new name is there already; that it also survives a power cut is asked of file systems that can promise it."""
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def is_within(path: Path, folder: Path) -> bool:
    """Whether this is inside the folder once all links are followed; it need not exist."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
        return False
