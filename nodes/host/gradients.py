"""A room in which gradients can be taken through a model that the host loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.quant_ops
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

# Formats of the host whose products have no backward.
ONE_WAY = ("convrot_w4a4", "asym_w4a8_int8")


class OrdinaryWeights:
    """Lends a model ordinary tensors in place of its inference tensors, through which nothing can be differentiated.

    Both share their memory, so nothing is copied and every value keeps its bits. Afterwards the originals go back: the host
    detaches and moves them inside inference mode, which quantised ones that were made outside of it do not survive.
    """

    def __init__(self) -> None:
        self._lent: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []  # of a module's tensors by name: before and now
        self._unpacked: list[tuple[Any, list[Any]]] = []

    def lend(self, module: nn.Module) -> None:
        """Must run outside of inference mode; again whenever the host may have moved the model."""
        part: Any
        for part in module.modules():
            if getattr(part, "quant_format", None) in ONE_WAY:  # a function of the weight makes the host unpack it
                self._unpacked.append((part, part.weight_function))
                part.weight_function = [*part.weight_function, _unchanged]
            for name, weight in list(part._parameters.items()):
                if weight is not None and weight.is_inference():
                    self._swap(part._parameters, name, nn.Parameter(ordinary(weight.data), requires_grad=False))
            for name, buffer in list(part._buffers.items()):
                if buffer is not None and buffer.is_inference():
                    self._swap(part._buffers, name, ordinary(buffer))

    def _swap(self, tensors: dict[str, Any], name: str, now: Tensor) -> None:
        self._lent.append((tensors, name, tensors[name], now))
        tensors[name] = now

    def give_back(self) -> None:
        """What the host has put elsewhere meanwhile stays as it put it."""
        for tensors, name, before, now in self._lent:
            if tensors[name] is now and now.device == before.device:
                tensors[name] = before
        for part, functions in self._unpacked:
            part.weight_function = functions
        self._lent.clear()
        self._unpacked.clear()


def _unchanged(weight: Tensor) -> Tensor:
    return weight


def ordinary(tensor: Tensor) -> Tensor:
    """The same values in the same memory as an ordinary tensor; a copy where its kind is not known."""
    if type(tensor) is Tensor:
        with torch.no_grad():
            empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    if isinstance(tensor, comfy.quant_ops.QuantizedTensor):
        names, context = tensor.__tensor_flatten__()
        parts = {name: ordinary(getattr(tensor, name)) for name in names}
        return type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
    return tensor.detach().clone()


@contextmanager
def plain_operations() -> Iterator[None]:
    """While open, operations that the host fuses for speed are made of PyTorch's own: the fused ones have no gradient."""
    kitchen = getattr(comfy.quant_ops, "ck", None)
    plain = getattr(getattr(kitchen, "backends", None), "eager", None)
    fused = re.compile(r"(apply_rope|rms_rope|adaln|rms_adaln)")
    names = [name for name in getattr(plain, "__all__", ()) if fused.match(name) and hasattr(kitchen, name)]
    before = {name: getattr(kitchen, name) for name in names}
    for name in names:
        setattr(kitchen, name, getattr(plain, name))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(kitchen, name, function)


def without_inference_mode(value: Any) -> Any:
    """The same outside of inference mode: tensors in it are copied."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: without_inference_mode(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_inference_mode(part) for part in value)
    return value


@contextmanager
def clone_norm_inputs(model: nn.Module) -> Iterator[None]:
    """While open, norms work on copies. Some models (Flux) write into the stream that a norm has kept for its backward.

    That is the common case, and this is far cheaper than to watch every operation, see `differentiable`.
    """

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
