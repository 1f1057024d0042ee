"""What stops a training in a sentence: latents that are no numbers, memory that runs out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import SeqLoRAError
from ..settings import Settings


def check_latents(latents: Sequence[Tensor]) -> None:
    for number, latent in enumerate(latents, 1):
        if not latent.isfinite().all():
            raise SeqLoRAError(f"Picture {number} was encoded to values that are not numbers", "run the VAE in float32")


@contextmanager
def memory_advice(settings: Settings) -> Iterator[None]:
    """Says what to lower when the device runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        if not known and not any(words in str(error) for words in ("out of memory", "allocate memory")):
            raise
        raise SeqLoRAError(
            "The device ran out of memory",
            f"lower batch_size (now {settings.batch_size}), the pictures' size or the library's rank, or choose fewer targets",
        ) from error
