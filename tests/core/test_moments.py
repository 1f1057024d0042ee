"""Second moments: what the recorder adds up, and what a sketch keeps of it."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seqlora.method import moments as m
from seqlora.method.moments import Moment, Recorder
from seqlora.training import measure as measuring
from seqlora.training.measure import _probe_output
from tests.support.small import TOKENS, WIDTH, SmallDenoiser, small_layers


def random_moment(width: int, spectrum: torch.Tensor, seed: int = 0, samples: int = 2000) -> tuple[Moment, torch.Tensor]:
    """A moment as the recorder makes it, fp32, and the true C in float64."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(len(spectrum), width, generator=g)
    x = torch.randn(samples, len(spectrum), generator=g) * spectrum @ mix
    recorder = Recorder({})
    recorder.input_of["x"] = "x"
    recorder._seen.add("x", x)
    return recorder.moments()["x"], x.double().mT @ x.double() / samples


def rebuilt(moment: Moment) -> torch.Tensor:
    factor, diagonal = moment.factor()
    return factor @ factor.mT + torch.diag(diagonal)


def relative(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).norm() / true.norm())


def test_exact_moment():
    moment, C = random_moment(24, torch.ones(24))
    assert moment.exact
    assert relative(moment.sketch.double(), C) < 1e-6
    assert relative(rebuilt(moment), C) < 1e-6


@pytest.mark.parametrize("rank", [1, 5, 20, 40, 64])
def test_sketch_recovers_low_rank(rank):
    moment, C = random_moment(400, torch.ones(rank))
    assert not moment.exact and moment.sketch.shape == (400, m.SKETCH_RANK)
    assert relative(rebuilt(moment), C) < 1e-4


@pytest.mark.parametrize("spectrum", [torch.ones(400), 1 / torch.arange(1.0, 401), torch.tensor([1.0, 1e-3])])
def test_sketch_never_sees_more_than_there_is(spectrum):
    moment, C = random_moment(400, spectrum)
    factor, diagonal = moment.factor()
    assert float(diagonal.min()) >= 0
    # VV' <= C, and the diagonal makes up for all that is missing on it.
    assert float(torch.linalg.eigvalsh(C - factor @ factor.mT)[0]) > -1e-5 * float(torch.linalg.matrix_norm(C, 2))
    assert relative(rebuilt(moment).diagonal(), C.diagonal()) < 1e-5


@pytest.mark.parametrize("width", [24, 400])
def test_an_empty_moment_has_an_empty_factor(width):
    sketch = torch.zeros(width, width if width <= m.EXACT_WIDTH else m.SKETCH_RANK)
    factor, diagonal = Moment(sketch, torch.zeros(width)).factor()
    assert not factor.any() and not diagonal.any()


@pytest.mark.parametrize("width", [24, 400])
def test_moments_add_up(width):
    spectrum = torch.ones(8)
    (one, C1), (two, C2) = random_moment(width, spectrum, 1), random_moment(width, spectrum, 2)
    assert relative(rebuilt(one + two * 0.5), C1 + 0.5 * C2) < 1e-4


def forward(denoiser: SmallDenoiser, layers, inputs) -> m.Moments:
    recorder = Recorder(layers)
    for x in inputs:
        with torch.no_grad(), recorder.attached():
            denoiser.net(x)
    return recorder.moments()


def test_layers_that_read_one_tensor_share_a_moment():
    denoiser = SmallDenoiser()
    layers = small_layers(denoiser)
    x = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))
    found = forward(denoiser, layers, [x])
    first = {n: n for n in layers} | {
        f"diffusion_model.blocks.{i}.attn_k": f"diffusion_model.blocks.{i}.attn_q" for i in (0, 1)
    }
    assert found.input_of == first
    assert set(found.by_input) == set(first.values())
    rows = x.reshape(-1, 32).double()
    assert relative(found["diffusion_model.blocks.0.attn_k"].sketch.double(), rows.mT @ rows / len(rows)) < 1e-6


def test_equal_values_in_two_tensors_are_two_inputs():
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    recorder = Recorder(layers)
    x = torch.randn(2, 4)
    with recorder.attached():
        layers["a"](x), layers["b"](x.clone())
    assert recorder.input_of == {"a": "a", "b": "b"}


def test_output_energy_is_without_bias():
    denoiser = SmallDenoiser()
    layers = small_layers(denoiser)
    x = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))
    found = forward(denoiser, layers, [x])
    for name in ("attn_q", "attn_k"):
        W = denoiser.net.blocks[0][name].weight.double()
        expected = float((x.reshape(-1, 32).double() @ W.mT).square().sum(1).mean())
        assert found.output_energy[f"diffusion_model.blocks.0.{name}"] == pytest.approx(expected, rel=1e-5)


def test_streaming_equals_one_batch():
    denoiser = SmallDenoiser()
    layers = small_layers(denoiser)
    x = torch.randn(7, 16, 32, generator=torch.Generator().manual_seed(0))
    whole, parts = forward(denoiser, layers, [x]), forward(denoiser, layers, [x[:1], x[1:5], x[5:]])
    assert whole.input_of == parts.input_of
    for name in layers:
        torch.testing.assert_close(parts[name].sketch, whole[name].sketch, rtol=1e-5, atol=1e-5)
        assert parts.output_energy[name] == pytest.approx(whole.output_energy[name], rel=1e-5)


class LargestCopy(TorchDispatchMode):
    """The most values of any fp32 tensor that is made while this is on."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.most = max(self.most, out.numel())
        return out


def test_rows_are_taken_up_in_parts(monkeypatch):
    """Of rows in half precision no whole copy is made, and their moments are the same."""
    layer = nn.Linear(32, 48).bfloat16().requires_grad_(False)
    x = torch.randn(400, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for most in (m.LARGEST_PART, 3200):
        monkeypatch.setattr(m, "LARGEST_PART", most)
        recorder = Recorder({"a": layer})
        with recorder.attached(), LargestCopy() as copies:
            layer(x)
        found.append(recorder.moments())
    assert copies.most <= 3200
    whole, parts = found
    torch.testing.assert_close(parts["a"].sketch, whole["a"].sketch, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts["a"].diagonal, whole["a"].diagonal, rtol=1e-5, atol=1e-6)
    assert parts.output_energy["a"] == pytest.approx(whole.output_energy["a"], rel=1e-5)


@pytest.mark.parametrize("at_a_time", [4, 2, 1])
def test_large_pictures_are_drawn_fewer_at_a_time(monkeypatch, at_a_time):
    """The output is probed at the same captions and noise levels, and no forward takes more pictures than it should."""
    denoiser = SmallDenoiser()
    conds = [torch.full((WIDTH,), 0.1 * number) for number in range(6)]
    probed, sizes, probe, predict = [], [], measuring._probe_output, SmallDenoiser.__call__

    def noted(denoiser, recorder, x, sigma, cond, generator):
        probed.append((round(float(cond[0][0]), 3), round(float(sigma), 3)))
        return probe(denoiser, recorder, x, sigma, cond, generator)

    def counted(self, x, sigma, cond):
        sizes.append(len(x))
        return predict(self, x, sigma, cond)

    monkeypatch.setattr(measuring, "_probe_output", noted)
    monkeypatch.setattr(SmallDenoiser, "__call__", counted)
    monkeypatch.setattr(measuring, "DRAWN_POSITIONS", at_a_time * WIDTH)
    told = list(measuring.measure_prior(denoiser, small_layers(denoiser), (TOKENS, WIDTH), conds, conds[0]))
    assert max(sizes) == 2 * at_a_time and len(told) == -(-6 // at_a_time)
    assert sorted(probed) == sorted([(0.0, 1.0), (0.1, 0.667), (0.2, 0.333), (0.4, 1.0), (0.5, 0.667), (0.4, 0.333)])


def test_the_recorder_leaves_no_trace():
    denoiser = SmallDenoiser()
    layers = small_layers(denoiser)
    x = torch.randn(3, 16, 32)
    before = denoiser.net(x)
    recorder = Recorder(layers)
    with pytest.raises(RuntimeError), recorder.attached():
        assert torch.equal(denoiser.net(x), before)
        raise RuntimeError
    assert not any(layer._forward_hooks for layer in layers.values())


def test_felt_moments_are_the_squared_jacobian():
    denoiser = SmallDenoiser()
    layers = small_layers(denoiser)
    generator = torch.Generator().manual_seed(0)
    x, cond, sigma = torch.randn(1, TOKENS, WIDTH, generator=generator), [torch.zeros(WIDTH)], torch.tensor([0.5])
    name, layer = next((n, m) for n, m in layers.items() if n.endswith("blocks.1.mlp_in"))
    change = torch.zeros(TOKENS, layer.out_features, requires_grad=True)

    def weighted(change):
        handle = layer.register_forward_hook(lambda module, args, output: output + change)
        try:
            return denoiser(x, sigma, cond) * denoiser.loss_weight(sigma).sqrt()
        finally:
            handle.remove()

    J = torch.autograd.functional.jacobian(weighted, change).reshape(x.numel(), TOKENS, -1).double()
    true = torch.einsum("otm,otk->mk", J, J) / TOKENS
    recorder = Recorder(layers)
    with recorder.attached():
        for _ in range(600):
            _probe_output(denoiser, recorder, x, sigma, cond, generator)
    assert not any(moment.diagonal.any() for moment in recorder.moments().by_input.values())  # a backward sees nothing
    assert relative(recorder.moments().output_curvature[name].sketch.double(), true) < 0.1
    assert all(p.grad is None for p in denoiser.net.parameters())
