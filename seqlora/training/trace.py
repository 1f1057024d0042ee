"""Which of a model's layers are taught: those of the library, or those that take part when the model is run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..diffusion.batches import Batches, Examples, denoising_loss
from ..diffusion.denoiser import Denoiser
from ..diffusion.gradients import OVERWRITTEN, differentiable
from ..diffusion.model import Model
from ..errors import SeqLoRAError
from ..library.store import Library
from ..lora.attach import Stack, attached
from ..lora.targets import layer_shapes


def layers_of(library: Library, model: Model) -> Mapping[str, nn.Module]:
    """The layers that a library's concepts have; for an empty one, all that can be taught.

    Raises SeqLoRAError where the library belongs to another model.
    """
    if library.base is None:
        return model.layers(library.targets)
    every = model.linear_layers()
    library.check_base(layer_shapes(every))
    return {name: every[name] for name in library.base.layers}


def trace_layers(denoiser: Denoiser, layers: Mapping[str, nn.Module], examples: Examples) -> list[str]:
    """The layers that run on these examples and reach the model's output, in the given order.

    The last block of some models has a text branch that nothing reads; others have parts that only pictures or sound enter. A
    concept on such a layer would be dead weight. Also notes on the denoiser whether the model writes in place. Draws from a
    generator of its own. Raises SeqLoRAError where no layer takes part.
    """
    generator = torch.Generator().manual_seed(0)
    batch = Batches(examples, denoiser, 1, generator).next()
    device, dtype = denoiser.device, denoiser.dtype
    stacks = [
        Stack([name], torch.zeros(1, m, 1, device=device), _direction(n, generator).to(device), dtype)
        for name, (m, n) in layer_shapes(layers).items()
    ]

    def run() -> None:
        with differentiable(denoiser), attached(layers, stacks):
            loss = denoising_loss(denoiser, batch)
            if loss.requires_grad:  # not where the model runs without gradients
                loss.backward()

    try:
        run()
    except RuntimeError as error:
        if denoiser.writes_in_place or OVERWRITTEN not in str(error):
            raise
        denoiser.writes_in_place = True
        run()
    reached = []
    for stack in stacks:
        (name,) = stack.names
        gradient = stack.A_of[name].grad
        if gradient is not None and bool(gradient.any()):
            reached.append(name)
    if not reached:
        raise SeqLoRAError("This model runs without gradients here, so it cannot be taught", "load it in another way")
    return reached


def _direction(n: int, generator: torch.Generator) -> torch.Tensor:
    """A random one of unit length, (1, n, 1)."""
    return nn.functional.normalize(torch.randn(1, n, 1, generator=generator), dim=1)
