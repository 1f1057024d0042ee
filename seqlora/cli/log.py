"""What happens, line by line with the time, on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """While open, INFO lines of the logger `seqlora` are shown; each takes the place of a progress line that is there."""
    logger = logging.getLogger("seqlora")
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("\r%(asctime)s seqlora: %(message)-30s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
