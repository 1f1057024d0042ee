"""The bilevel optimiser, batched by layer shape.

    upper:  min over B in M of  F(B) = L(A*(B), B)
    lower:  A*(B) = argmin_A  L(A, B),   L = denoising loss + lambda * sum over layers of w tr(Gamma A B' C B A')

The levels share L, so at A*(B) the plain dL/dB is the hypergradient (envelope theorem) and one backward serves both. The
vectors that stand for the trigger, where the concept learns some, are the lower level's too and move with A.

Both levels move by an unmodified Adam. B's gradient is first projected on the tangent space, then the step that Adam made of
it, and the result retracted: after every step B is orthonormal and orthogonal to all earlier concepts to rounding error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import torch
from torch import Tensor

from ..lora.attach import Stack
from .manifold import retract, tangent

Schedule = Literal["joint", "alternating", "finite_difference"]
BETAS = (0.9, 0.99)


class Level(Enum):
    """Which gradients a pass is for. LOWER and UPPER take a fresh batch each, LOWER_AGAIN the last one of LOWER."""

    LOWER = "lower"
    UPPER = "upper"
    LOWER_AGAIN = "lower again"


@dataclass
class Constraint:
    """Where the bases of one stack may move. Without one (plain LoRA) they move freely."""

    earlier: Tensor  # F, (layers, n, p); zero columns constrain nothing


@dataclass(frozen=True)
class Rates:
    coefficients: float  # of A
    basis: float  # of B; 0 freezes the basis
    vectors: float = 0.0  # of the trigger's vectors
    warmup: int = 10
    final: float = 0.1  # share of the peak that the cosine ends at

    def at(self, step: int, steps: int) -> float:
        """The factor on both rates at a step in 0..steps."""
        cosine = self.final + (1 - self.final) * (1 + math.cos(math.pi * min(step / max(steps, 1), 1))) / 2
        return min(1.0, (step + 1) / self.warmup) * cosine


class BilevelOptimizer:
    """Moves the stacks. `gradients(level)` must run one forward and backward and leave the loss's gradients, penalties
    included, in the stacks."""

    def __init__(
        self,
        stacks: Sequence[Stack],
        constraints: Sequence[Constraint | None],
        rates: Rates,
        steps: int,
        schedule: Schedule = "joint",
        inner_steps: int = 4,
        vectors: Sequence[Tensor] = (),
    ):
        self.stacks, self.constraints, self.rates, self.steps = list(stacks), list(constraints), rates, steps
        self.vectors = list(vectors)
        self.schedule, self.inner_steps = schedule, inner_steps
        fused = all(s.A.is_cuda or s.A.device.type == "cpu" for s in stacks)
        self.lower = torch.optim.Adam([s.A for s in stacks], lr=rates.coefficients, betas=BETAS, fused=fused)
        self.upper = torch.optim.Adam([s.B for s in stacks], lr=rates.basis, betas=BETAS, fused=fused)
        self.words = torch.optim.Adam(self.vectors, lr=rates.vectors, betas=BETAS, fused=fused) if self.vectors else None
        self.vector_grads = [torch.zeros_like(vector) for vector in self.vectors]
        for vector, gradient in zip(self.vectors, self.vector_grads, strict=True):
            vector.grad = gradient
        self.passes = 0
        # Norms of dL/dA (and of the vectors' gradient) and of the Riemannian gradient of B, at the last pass of each.
        self.residual = self.gradient = torch.zeros(())
        self.turn = 0  # place in the lower, lower, ..., upper round of the alternating schedules

    @torch.no_grad()
    def step(self, gradients: Callable[[Level], Tensor]) -> Tensor:
        """One round of the schedule; returns the loss of its first pass. `passes` counts forward and backward passes."""
        factor = self.rates.at(self.passes, self.steps)
        self.lower.param_groups[0]["lr"] = self.rates.coefficients * factor
        self.upper.param_groups[0]["lr"] = self.rates.basis * factor
        self.turn = (self.turn + 1) % (self.inner_steps + 1)
        moves_basis = self.rates.basis > 0 and (self.schedule == "joint" or self.turn == 0)
        if self.schedule == "finite_difference" and moves_basis:
            return self._look_ahead(gradients)
        loss = self._pass(gradients, Level.LOWER)
        if self.schedule == "joint" or not moves_basis:
            self.residual = _norm([*(stack.grad_A for stack in self.stacks), *self.vector_grads])
            self.lower.step()
            if self.words:
                self.words.param_groups[0]["lr"] = self.rates.vectors * factor
                self.words.step()
        if moves_basis:
            self._move_bases()
        self._renew()
        return loss

    def _pass(self, gradients: Callable[[Level], Tensor], level: Level) -> Tensor:
        for stack in self.stacks:
            stack.zero_grad()
        if self.words:
            self.words.zero_grad(set_to_none=False)
        self.passes += 1
        return gradients(level)

    def _renew(self) -> None:
        for stack in self.stacks:
            stack.renew()

    def _move_bases(self) -> None:
        for stack, constraint in zip(self.stacks, self.constraints, strict=True):
            if constraint is not None:
                stack.grad_B.copy_(tangent(stack.grad_B, stack.B, constraint.earlier))
        self.gradient = _norm([stack.grad_B for stack in self.stacks])
        before = [stack.B.clone() for stack in self.stacks]
        self.upper.step()
        for stack, constraint, start in zip(self.stacks, self.constraints, before, strict=True):
            if constraint is None:
                continue
            move = tangent(stack.B - start, start, constraint.earlier)
            stack.B.copy_(retract(start + move, constraint.earlier))
            momentum = self.upper.state[stack.B]["exp_avg"]
            momentum.copy_(tangent(momentum, stack.B, constraint.earlier))

    def _look_ahead(self, gradients: Callable[[Level], Tensor]) -> Tensor:
        """The hypergradient at one look-ahead step of A, its second-order term by finite differences (DARTS, Liu et al. 2019):

        dF/dB = dL_up(A', B)/dB - xi * [dL_low(A + eps v, B)/dB - dL_low(A - eps v, B)/dB] / (2 eps),   v = dL_up(A', B)/dA'
        """
        xi = self.lower.param_groups[0]["lr"]
        start = [stack.A.clone() for stack in self.stacks]
        loss = self._pass(gradients, Level.LOWER)
        lower_A = [stack.grad_A.clone() for stack in self.stacks]
        try:
            self._place(start, lower_A, -xi)
            self._pass(gradients, Level.UPPER)
            direct = [stack.grad_B.clone() for stack in self.stacks]
            v = [stack.grad_A.clone() for stack in self.stacks]
            epsilon = 0.01 / math.sqrt(sum(float(x.square().sum()) for x in v) + 1e-24)
            sides = []
            for sign in (1, -1):
                self._place(start, v, sign * epsilon)
                self._pass(gradients, Level.LOWER_AGAIN)
                sides.append([stack.grad_B.clone() for stack in self.stacks])
        finally:  # also when a pass was interrupted: what is kept then is the state before this step
            for stack, A in zip(self.stacks, start, strict=True):
                stack.A.copy_(A)
        for stack, first, plus, minus in zip(self.stacks, direct, *sides, strict=True):
            stack.grad_B.copy_(first - xi * (plus - minus) / (2 * epsilon))
        self._move_bases()
        self._renew()
        return loss

    def _place(self, start: list[Tensor], direction: list[Tensor], length: float) -> None:
        for stack, A, d in zip(self.stacks, start, direction, strict=True):
            stack.A.copy_(A + length * d)
        self._renew()

    def state(self) -> dict[str, Tensor]:
        """The stacks and vectors and what Adam remembers of them, by name; not copies."""
        tensors = {}
        for name, adam, moved in self._moved():
            for i, tensor in enumerate(moved):
                tensors[f"{name}.{i}"] = tensor.detach()
                tensors |= {f"{name}.{i}.{key}": value for key, value in adam.state.get(tensor, {}).items()}
        return tensors

    def _moved(self) -> Iterator[tuple[str, torch.optim.Adam, list[Tensor]]]:
        yield "A", self.lower, [stack.A for stack in self.stacks]
        yield "B", self.upper, [stack.B for stack in self.stacks]
        if self.words:
            yield "vectors", self.words, self.vectors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], passes: int, turn: int) -> None:
        self.passes, self.turn = passes, turn
        for level, adam, moved in self._moved():
            remembered: dict[int, dict[str, Tensor]] = {}
            for i, tensor in enumerate(moved):
                tensor.copy_(tensors[f"{level}.{i}"])
                start = f"{level}.{i}."
                remembered[i] = {name.removeprefix(start): t.clone() for name, t in tensors.items() if name.startswith(start)}
            groups = adam.state_dict()["param_groups"]
            adam.load_state_dict({"state": {i: held for i, held in remembered.items() if held}, "param_groups": groups})
        self._renew()


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt()
