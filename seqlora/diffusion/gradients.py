"""A forward and its backward through a model that may write over what the backward needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from .denoiser import Denoiser

OVERWRITTEN = "modified by an inplace operation"  # in PyTorch's message, which has no type of its own


@contextmanager
def differentiable(denoiser: Denoiser) -> Iterator[None]:
    """The room for one forward and its backward.

    Some models write in place into tensors that autograd has kept. For those PyTorch copies what is written over, which costs
    time at every operation; so it is done only where `trace_layers` has found the need.
    """
    copies = torch.autograd.graph.allow_mutation_on_saved_tensors() if denoiser.writes_in_place else nullcontext()
    with torch.enable_grad(), copies:
        yield
