"""Adapters beside their layers, against float64."""

from __future__ import annotations

import torch
from torch import nn

from seqlora.lora.attach import added, changed
from seqlora.lora.compose import compose
from seqlora.lora.types import LoRAPair


def pair(m: int, n: int, rank: int, seed: int) -> LoRAPair:
    generator = torch.Generator().manual_seed(seed)
    return LoRAPair(torch.randn(m, rank, generator=generator), torch.linalg.qr(torch.randn(n, rank, generator=generator))[0])


def test_a_gate_gives_each_row_its_share_of_each_concept():
    one, two = pair(7, 9, 2, 1), pair(7, 9, 3, 2)
    up, basis = compose([({"a": one}, 0.5), ({"a": two}, 2.0)])["a"]
    x, shares = torch.randn(2, 5, 9), torch.rand(5, 2)
    gate = shares[:, [0, 0, 1, 1, 1]]
    expected = shares[:, :1].double() * 0.5 * (x.double() @ one.basis.double() @ one.up.double().T)
    expected += shares[:, 1:].double() * 2.0 * (x.double() @ two.basis.double() @ two.up.double().T)
    output = torch.randn(2, 5, 7)
    expected += output.double()
    for enabled in (True, False):  # the second writes to the output that it is given
        with torch.set_grad_enabled(enabled):
            found = changed(output.clone(), x, up, basis, gate)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    half = changed(output.bfloat16(), x, up, basis, gate)
    torch.testing.assert_close(half, expected.bfloat16(), rtol=1e-2, atol=5e-2)


def test_added_is_what_a_changed_weight_gives_and_leaves_nothing():
    layers = {"a": nn.Linear(9, 7), "b": nn.Linear(7, 7)}
    pairs = {"a": pair(7, 9, 2, 1), "b": pair(7, 7, 2, 2)}
    x = torch.randn(4, 9)
    bare = layers["b"](layers["a"](x))
    hidden = x.double() @ (layers["a"].weight.double() + pairs["a"].up.double() @ pairs["a"].basis.double().T).T
    hidden = hidden + layers["a"].bias.double()
    expected = hidden @ (layers["b"].weight.double() + pairs["b"].up.double() @ pairs["b"].basis.double().T).T
    expected = expected + layers["b"].bias.double()
    with added(layers, pairs):
        found = layers["b"](layers["a"](x))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(layers["b"](layers["a"](x)), bare)


def test_the_gate_is_asked_by_layer_and_input():
    layers, asked = {"a": nn.Linear(9, 7)}, []

    def gate(name: str, x: torch.Tensor) -> torch.Tensor:
        asked.append((name, tuple(x.shape)))
        return torch.tensor([[1.0], [0.0], [1.0], [0.0]])

    x = torch.randn(2, 4, 9)
    with added(layers, {"a": pair(7, 9, 2, 1)}, gate):
        gated = layers["a"](x)
    with added(layers, {"a": pair(7, 9, 2, 1)}):
        whole = layers["a"](x)
    assert asked == [("a", (2, 4, 9))]
    assert torch.equal(gated[:, 1::2], layers["a"](x)[:, 1::2])
    torch.testing.assert_close(gated[:, ::2], whole[:, ::2])
