"""A room in which gradients can be taken through a model that the host loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import comfy.weight_adapter
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


def replace_inference_tensors(module: nn.Module) -> None:
    """Replaces inference tensors among the parameters and buffers by equal ordinary ones, one at a time.

    Must run outside of inference mode. Modules keep their identity and every value its bits, so nothing needs undoing; the
    alternative, a deep copy, would read the checkpoint anew and take twice the memory.
    """
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None and weight.is_inference():
                part._parameters[name] = nn.Parameter(weight.detach().clone(), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()


def without_inference_mode(value: Any) -> Any:
    """The same outside of inference mode: tensors in it are copied."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: without_inference_mode(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_inference_mode(part) for part in value)
    return value


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost members of module lists that are run as a whole; a UNet's are inside its levels."""
    found: list[nn.Module] = []

    def search(module: nn.Module, in_list: bool) -> None:
        if in_list and not isinstance(module, (nn.Sequential, nn.ModuleList)) and next(module.children(), None) is not None:
            found.append(module)
            return
        for child in module.children():
            search(child, isinstance(module, nn.ModuleList))

    search(model, False)
    return found


@contextmanager
def clone_norm_inputs(model: nn.Module) -> Iterator[None]:
    """While open, norms work on copies. Some models (Flux) write into the stream that a norm has kept for its backward."""

    def copied(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if args and isinstance(args[0], Tensor) and args[0].requires_grad and torch.is_grad_enabled():
            return (args[0].clone(), *args[1:])
        return None

    norms = [part for part in model.modules() if "Norm" in type(part).__name__ and next(part.children(), None) is None]
    handles = [norm.register_forward_pre_hook(copied) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While open, these blocks keep only their inputs and run again in the backward: less memory, about a third slower."""
    before = [(block, block.__dict__.get("forward")) for block in blocks]
    for block in blocks:
        block.forward = checkpointed_forward(block.forward)
    try:
        yield
    finally:
        for block, forward in before:
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def checkpointed_forward(forward: Any) -> Any:
    def instead(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        leaves, structure = tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def run(*tensors: Tensor) -> Any:
            filled = list(leaves)
            for i, tensor in zip(places, tensors, strict=True):
                filled[i] = tensor.clone()  # some blocks write into their inputs
            again, named = tree_unflatten(filled, structure)
            return forward(*again, **named)

        # The inputs of the first block need no gradient, but what is inside it does: something that grad_anchor for one.
        grad_anchor = torch.zeros((), requires_grad=True)
        return CheckpointFunction.apply(run, grad_anchor, *[leaves[i] for i in places])

    return instead


class CheckpointFunction(torch.autograd.Function):
    """Gradient checkpointing. PyTorch's own would not notice where a model writes over what its backward needs."""

    @staticmethod
    def forward(ctx: Any, run: Any, grad_anchor: Tensor, *tensors: Tensor) -> Any:
        ctx.run = run
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return run(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        tensors = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            outputs = ctx.run(*tensors)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        pairs = zip(outputs, gradients, strict=True)
        known = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
        torch.autograd.backward([out for out, _ in known], [grad for _, grad in known])
        return None, None, *[tensor.grad for tensor in tensors]


def _plain_attention(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
