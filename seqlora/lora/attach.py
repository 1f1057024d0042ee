"""How adapters are stacked by shape, and how they attach without touching a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .types import Concept, LoRAPair


class Stack:
    """All layers of one shape: A is (layers, m, r), B is (layers, n, r), fp32 masters with gradients beside them.

    The optimiser works on the whole stack at once; each layer's forward uses its slice, and autograd adds into the slice of
    the gradient. Where layers compute in bf16 the slices are of a bf16 copy, renewed once a step.
    """

    def __init__(self, names: Sequence[str], A: Tensor, B: Tensor, dtype: torch.dtype = torch.float32):
        self.names = list(names)
        self.A, self.B, self.dtype = A, B, dtype
        self.grad_A, self.grad_B = torch.zeros_like(A), torch.zeros_like(B)
        self.A.grad, self.B.grad = self.grad_A, self.grad_B  # where Adam looks for them
        self._compute_A, self._compute_grad_A = self._compute_copy(A, self.grad_A)
        self._compute_B, self._compute_grad_B = self._compute_copy(B, self.grad_B)
        self.A_of = self._slices(self._compute_A, self._compute_grad_A)
        self.B_of = self._slices(self._compute_B, self._compute_grad_B)

    def _compute_copy(self, master: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        if self.dtype == master.dtype:
            return master, gradient
        copy = master.to(self.dtype)
        return copy, torch.zeros_like(copy)

    def _slices(self, stacked: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        slices = {}
        for i, name in enumerate(self.names):
            slices[name] = stacked.detach()[i].requires_grad_()
            slices[name].grad = gradient[i]
        return slices

    def renew(self) -> None:
        """Brings the compute copy up to date after the masters moved."""
        if self._compute_A is not self.A:
            self._compute_A.copy_(self.A)
            self._compute_B.copy_(self.B)

    def gather(self) -> None:
        """Brings the gradients to the masters after a backward."""
        if self._compute_A is not self.A:
            self.grad_A.copy_(self._compute_grad_A)
            self.grad_B.copy_(self._compute_grad_B)

    def zero_grad(self) -> None:
        for gradient in (self.grad_A, self.grad_B, self._compute_grad_A, self._compute_grad_B):
            gradient.zero_()

    def pairs(self) -> dict[str, LoRAPair]:
        """The layers' pairs, copied to the CPU in fp32."""
        A, B = self.A.detach().float().cpu(), self.B.detach().float().cpu()
        return {name: LoRAPair(A[i].clone(), B[i].clone()) for i, name in enumerate(self.names)}


class ActiveConcepts:
    """Earlier concepts that are on while a new one is trained: one concatenated adapter per layer, drawn anew now and then.

    All wait on the CPU, in the precision in which the layers compute; only those that are on lie on the device.
    """

    def __init__(self, stacks: Sequence[Stack], earlier: Sequence[Concept]):
        self.count = len(earlier)
        self.active: dict[str, tuple[Tensor, Tensor]] = {}
        self._stacks = list(stacks)
        self._waiting = [[_stacked(stack, concept) for concept in earlier] for stack in stacks]

    def select(self, chosen: Sequence[int]) -> None:
        """Turns exactly these earlier concepts on."""
        self.active = {}  # what was on makes room first
        for stack, waiting in zip(self._stacks, self._waiting, strict=True):
            drawn = [waiting[i] for i in chosen if waiting[i][0].shape[2]]
            if drawn:
                A, B = (torch.cat([part.to(stack.A.device) for part in parts], 2) for parts in zip(*drawn, strict=True))
                self.active |= {name: (A[i], B[i]) for i, name in enumerate(stack.names)}


def _stacked(stack: Stack, concept: Concept) -> tuple[Tensor, Tensor]:
    """A concept's A (layers, m, r) and B (layers, n, r) on the layers of a stack; zeros where it has no such layer."""
    names = [name for name in stack.names if name in concept]
    rank = max((concept[name].basis.shape[1] for name in names), default=0)
    layers, m, n = len(stack.names), stack.A.shape[1], stack.B.shape[1]
    A, B = torch.zeros(layers, m, rank, dtype=stack.dtype), torch.zeros(layers, n, rank, dtype=stack.dtype)
    for i, name in enumerate(stack.names):
        if name in concept:
            pair = concept[name]
            A[i, :, : pair.up.shape[1]], B[i, :, : pair.basis.shape[1]] = pair.up, pair.basis
    return A, B


def change(x: Tensor, up: Tensor, basis: Tensor) -> Tensor:
    """A B' x for rows x: (..., n) -> (..., m), computed in the adapter's dtype."""
    return (x.to(basis.dtype) @ basis) @ up.mT


def changed(output: Tensor, x: Tensor, up: Tensor, basis: Tensor, gate: Tensor | None = None) -> Tensor:
    """output + A (g * B' x), rows x (..., n), output (..., m); where nothing is differentiated, `output` itself is written to.

    `gate`, broadcast to (..., r), says how much of each direction each row gets; None is all of it.
    """
    within = x.to(basis.dtype) @ basis
    within = within if gate is None else within * gate
    if output.dtype != up.dtype:
        return output + (within @ up.mT).to(output.dtype)
    rows, within = output.reshape(-1, output.shape[-1]), within.reshape(-1, within.shape[-1])
    rows = rows.addmm(within, up.mT) if torch.is_grad_enabled() else rows.addmm_(within, up.mT)
    return rows.view_as(output)


@contextmanager
def attached(layers: Mapping[str, nn.Module], stacks: Sequence[Stack], earlier: ActiveConcepts | None = None) -> Iterator[None]:
    """While open, every layer's output has A B' x added, and the active earlier concepts'; no weight is touched."""
    pairs = {name: (stack.A_of[name], stack.B_of[name]) for stack in stacks for name in stack.names}

    def hook(name: str) -> Callable[..., Tensor]:
        A, B = pairs[name]

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            added = change(args[0], A, B)
            if earlier is not None and name in earlier.active:
                added = added + change(args[0], *earlier.active[name])
            return output + added.to(output.dtype)

        return add

    handles = [layers[name].register_forward_hook(hook(name)) for name in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# What a layer gets of each direction, from its name and its input; see `changed`.
Gate = Callable[[str, Tensor], Tensor | None]


@contextmanager
def added(layers: Mapping[str, nn.Module], pairs: Mapping[str, LoRAPair], gate: Gate | None = None) -> Iterator[None]:
    """While open, every layer that has a pair adds what the pair makes of its input: a composition without a written weight.

    Pairs are on the layers' device, in the dtype to compute in. Nothing can be trained this way; see `attached`.
    """

    def hook(name: str, pair: LoRAPair) -> Callable[..., Tensor]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return changed(output, args[0], *pair, gate and gate(name, args[0]))

        return add

    handles = [layers[name].register_forward_hook(hook(name, pair)) for name, pair in pairs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
