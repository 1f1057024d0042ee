"""Which layers are taught is found by running the model: dead ones are left out, a library's own are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seqlora.errors import SeqLoRAError
from seqlora.library.store import Library
from seqlora.lora.targets import choose_layers
from seqlora.method.moments import Recorder
from seqlora.training.request import TrainingRequest
from seqlora.training.trace import trace_layers
from seqlora.training.train import train
from tests.support.small import QUICK, WIDTH, SmallModel, small_examples


class Branches(nn.Module):
    """A block with a layer that counts, one whose output nobody reads, and one that never runs."""

    def __init__(self):
        super().__init__()
        names = ("attn_q", "attn_dead", "attn_idle")
        self.blocks = nn.ModuleList(nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in names}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            block["attn_dead"](x)
            x = x + block["attn_q"](x)
        return x


class Overwriting(Branches):
    """Writes into the stream that its norm and the adapters have kept for the backward."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        for block in self.blocks:
            x += torch.tanh(block["attn_q"](nn.functional.rms_norm(x, (WIDTH,)))) * x
        return x


class Copying(Branches):
    """The same without writing in place."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block["attn_q"](nn.functional.rms_norm(x, (WIDTH,)))) * x
        return x


def model_with(net: type[nn.Module]) -> SmallModel:
    model = SmallModel()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.denoiser.net = net().requires_grad_(False)
    return model


def lesson(name: str = "cat") -> TrainingRequest:
    pictures = list(torch.rand(4, 32, 32, 3, generator=torch.Generator().manual_seed(0)))
    return TrainingRequest(name, "zobiku", name, pictures)


def test_layers_that_do_not_run_or_reach_nothing_are_left_out():
    denoiser = model_with(Branches).denoiser
    found = trace_layers(denoiser, choose_layers(denoiser.net, "attention"), small_examples(0))
    assert found == ["diffusion_model.blocks.0.attn_q", "diffusion_model.blocks.1.attn_q"]
    assert not denoiser.writes_in_place


def test_what_is_left_out_is_in_no_file_and_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SmallModel, "encode_pictures", lambda self, pictures: list(small_examples(0).latents))
    result = train(Library.create(tmp_path / "pets", 2, 4, "attention"), lesson(), QUICK, model_with(Branches))
    assert result.report.layers_left_out == 4
    assert "4 of 6 layers do not run on such pictures and text, or nothing in the picture depends on them" in result.report.note
    assert set(result.library.load("cat")) == {f"diffusion_model.blocks.{i}.attn_q" for i in range(2)}
    second = train(result.library, lesson("dog"), QUICK, model_with(Branches))
    assert second.report.layers_left_out is None and "layers" not in second.report.note
    assert set(second.library.load("dog")) == set(result.library.load("cat"))


def test_a_model_in_which_no_layer_counts_is_refused():
    denoiser = model_with(Branches).denoiser
    idle = {name: layer for name, layer in choose_layers(denoiser.net, "attention").items() if "idle" in name}
    with pytest.raises(SeqLoRAError, match="runs without gradients here"):
        trace_layers(denoiser, idle, small_examples(0))


def test_a_model_that_writes_in_place_is_taught_as_if_it_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SmallModel, "encode_pictures", lambda self, pictures: list(small_examples(0).latents))
    files = []
    for net in (Overwriting, Copying):
        model = model_with(net)
        library = train(Library.create(tmp_path / net.__name__, 2, 4, "attention"), lesson(), QUICK, model).library
        assert model.denoiser.writes_in_place == (net is Overwriting)
        files.append(library.load("cat"))
    for name, pair in files[0].items():
        assert torch.equal(pair.up, files[1][name].up) and torch.equal(pair.basis, files[1][name].basis)


def test_one_tensor_with_another_content_is_another_input():
    first, second, third = (nn.Linear(4, 4) for _ in range(3))
    recorder = Recorder({"first": first, "second": second, "third": third})
    stream = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), recorder.attached():
        first(stream)
        second(stream)
        stream += 1
        third(stream)
    moments = recorder.moments()
    assert moments.input_of == {"first": "first", "second": "first", "third": "third"}
    assert torch.allclose(moments["third"].sketch, stream.mT @ stream / 8, atol=1e-5)


def test_a_layer_that_nothing_was_sent_to_has_zeros():
    ran, idle = nn.Linear(4, 6), nn.Linear(4, 6)
    recorder = Recorder({"ran": ran, "idle": idle})
    with torch.no_grad(), recorder.attached():
        ran(torch.ones(3, 4))
        idle(torch.ones(0, 4))
    moments = recorder.moments()
    assert not moments["idle"].sketch.any() and moments.output_energy["idle"] == 0
    assert moments["ran"].sketch.eq(1).all()


def test_structure_chooses_and_names_only_group():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            widths = {
                "q": (8, 8),
                "ffn_up": (8, 32),
                "gate_proj": (8, 32),
                "to_gate_logits": (8, 2),
                "img_mod": (8, 48),
                "adaLN": (8, 8),
            }
            for name, (n, m) in widths.items():
                setattr(self, name, nn.Linear(n, m))

    model = nn.Module()
    model.blocks = nn.ModuleList(Block() for _ in range(2))
    model.text_mlp = nn.Sequential(nn.Linear(8, 8))
    model.joint_blocks = nn.ModuleList([Block()])
    every = {name.rpartition(".")[2] for name in choose_layers(model, "attention and mlp", "")}
    assert every == {"q", "ffn_up", "gate_proj"}
    assert set(choose_layers(model, "attention", "")) == {"blocks.0.q", "blocks.1.q", "joint_blocks.0.q"}
