"""What is added to the denoising loss: how much a change disturbs everything else; the gradients are in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..lora.attach import Stack


@dataclass
class Interference:
    """The penalty of one stack, weight * tr(Gamma A B' C B A'): C = VV' + diag(d) is what the layers see of everything else,
    Gamma = UU' + diag(e) what the model's output feels of a change of theirs."""

    seen: Tensor  # V, (layers, n, k)
    seen_diagonal: Tensor  # d, (layers, n)
    felt: Tensor  # U, (layers, m, k')
    felt_diagonal: Tensor  # e, (layers, m)
    weight: Tensor  # (layers,)

    def add(self, stack: Stack, strength: float) -> Tensor:
        """Adds the penalty's gradients to the stack's; returns the penalty itself, a scalar."""
        A, B = stack.A, stack.B
        seen = self.seen @ (self.seen.mT @ B) + self.seen_diagonal[..., None] * B  # C B
        felt = self.felt @ (self.felt.mT @ A) + self.felt_diagonal[..., None] * A  # Gamma A
        energy = B.mT @ seen * self.weight[:, None, None]  # B'CB
        gram = A.mT @ felt  # A' Gamma A
        stack.grad_A.add_(felt @ energy, alpha=2 * strength)
        stack.grad_B.add_(seen @ (gram * self.weight[:, None, None]), alpha=2 * strength)
        return strength * (gram * energy).sum()


def overlap_penalty(stack: Stack, earlier: Tensor, strength: float) -> Tensor:
    """O-LoRA's soft penalty: strength * sum |F'B|, a baseline."""
    overlap = earlier.mT @ stack.B
    stack.grad_B.add_(earlier @ overlap.sign(), alpha=strength)
    return strength * overlap.abs().sum()
