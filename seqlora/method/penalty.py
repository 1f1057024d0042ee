"""What is added to the denoising loss: how much a change interferes with everything else; the gradients are in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..lora.attach import Stack
from .moments import factored_times


@dataclass
class Interference:
    """The penalty of one stack, weight * tr(Gamma A B' C B A'): C = VV' + diag(d) are the layers' input moments on everything
    else, Gamma = UU' + diag(e) the curvature of the model's output in theirs."""

    input_factor: Tensor  # V, (layers, n, k)
    input_diagonal: Tensor  # d, (layers, n)
    output_factor: Tensor  # U, (layers, m, k')
    output_diagonal: Tensor  # e, (layers, m)
    weight: Tensor  # (layers,)

    def add(self, stack: Stack, strength: float) -> Tensor:
        """Adds the penalty's gradients to the stack's; returns the penalty itself, a scalar."""
        A, B = stack.A, stack.B
        CB = factored_times(self.input_factor, self.input_diagonal, B)
        GammaA = factored_times(self.output_factor, self.output_diagonal, A)
        energy = B.mT @ CB * self.weight[:, None, None]  # w B'CB
        gram = A.mT @ GammaA
        stack.grad_A.add_(GammaA @ energy, alpha=2 * strength)
        stack.grad_B.add_(CB @ (gram * self.weight[:, None, None]), alpha=2 * strength)
        return strength * (gram * energy).sum()


def overlap_penalty(stack: Stack, earlier: Tensor, strength: float) -> Tensor:
    """O-LoRA's soft penalty: strength * sum |F'B|, a baseline."""
    overlap = earlier.mT @ stack.B
    stack.grad_B.add_(earlier @ overlap.sign(), alpha=strength)
    return strength * overlap.abs().sum()
