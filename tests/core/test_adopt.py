"""A LoRA made elsewhere becomes a concept like any other: what it does is followed, and its pictures are not needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seqlora.cli.main import main
from seqlora.demo.demo_model import DemoModel
from seqlora.demo.pictures import held_out_emoji, trigger_word
from seqlora.demo.run_demo import PLAIN_SETTINGS, request_of
from seqlora.errors import SeqLoRAError
from seqlora.library.export import export_composed
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.lora.attach import added
from seqlora.lora.formats import to_kohya
from seqlora.lora.targets import layer_shapes
from seqlora.lora.types import LoRAPair
from seqlora.method.metrics import basis_error
from seqlora.settings import method_settings
from seqlora.training.adopt import adopted_file, ask_teacher
from seqlora.training.progress import Progress, run_to_end
from seqlora.training.request import TrainingRequest
from seqlora.training.train import train_steps
from tests.support.small import QUICK, TOKENS, WIDTH, ReadingModel, SmallModel, contents

WORDS = TrainingRequest("rex", "zorv", "thing")
SETTINGS = QUICK.with_(steps=60)


class DrawingSmallModel(SmallModel):
    latent_shape: Sequence[int] = (TOKENS, WIDTH)
    default_guidance = 2.0
    contexts = ("a photo of {}", "{} in a park", "{} at night")

    @contextmanager
    def using(self, composed) -> Iterator[None]:
        with added(self.layers("attention and mlp"), composed):
            yield

    def decode(self, latents):
        return (latents[:, :, :16, None].sigmoid() + torch.zeros(3)).contiguous()


class DrawingReader(DrawingSmallModel, ReadingModel):
    """Its triggers take vectors."""


@pytest.fixture
def model():
    return DrawingSmallModel()


def lora_file(path: Path, model: SmallModel, seed: int = 0, size: float = 0.08, rank: int = 2, more=None) -> Path:
    g = torch.Generator().manual_seed(seed)
    pairs = {
        name: LoRAPair(size * torch.randn(m, rank, generator=g), torch.randn(n, rank, generator=g) / n**0.5)
        for name, (m, n) in layer_shapes(model.layers("attention and mlp")).items()
    }
    save_file({**to_kohya(pairs, {"family": "other"}), **(more or {})}, path)
    return path


def adopt(library, model, path, fast=False, settings=SETTINGS, words=WORDS, **options):
    return run_to_end(train_steps(library, words, settings, model, adoption=adopted_file(model, path, fast), **options))


@pytest.fixture
def empty(tmp_path):
    return Library.create(tmp_path / "mine", rank=4, capacity=2, targets="attention and mlp")


def test_it_is_kept_and_stands_at_right_angles_to_the_others(tmp_path, library, model):
    before = {name: library.load(name) for name in library.names}
    taught = adopt(library, model, lora_file(tmp_path / "a.safetensors", model))
    report = taught.report
    assert report.kept > 0.2 and report.adopted_from == "a.safetensors" and report.last_loss < report.first_loss
    concepts = [taught.library.load(name) for name in taught.library.names]
    assert taught.library.names == ["cat", "dog", "rex"] and basis_error(concepts)[0] < 1e-6
    assert all(
        torch.equal(before[name][layer].up, pair.up) for name in before for layer, pair in taught.library.load(name).items()
    )
    assert taught.record.subject == "zorv thing" and taught.library.thumbnail("rex")
    assert verify(taught.library.path) == []
    assert not any(module._forward_hooks for module in model.denoiser.net.modules())


def test_the_closed_form_keeps_less_than_following_and_more_than_nothing(tmp_path, model):
    path, kept = lora_file(tmp_path / "a.safetensors", model, rank=8), {}
    for fast in (True, False):
        library = Library.create(tmp_path / f"library {fast}", rank=4, capacity=2, targets="attention and mlp")
        report = adopt(library, model, path, fast, QUICK.with_(steps=60, interference_weight=0.0)).report
        kept[fast] = report.kept
        assert report.steps == (0 if fast else 60) and report.ended_early_at is None
    assert 0.3 < kept[True] < kept[False] - 0.1


def test_kept_is_the_part_of_the_change_that_the_concept_makes_too(tmp_path, model):
    """With room for all of it, nothing else to care for, and measured on answers that were not taught."""
    library = Library.create(tmp_path / "wide", rank=8, capacity=1, targets="attention and mlp")
    path = lora_file(tmp_path / "a.safetensors", model)
    followed = adopt(library, model, path, settings=QUICK.with_(steps=200, interference_weight=0.0))
    assert followed.report.kept > 0.97


def test_the_teacher_draws_each_context_and_answers_about_it(tmp_path, model):
    adoption = adopted_file(model, lora_file(tmp_path / "a.safetensors", model))
    with adoption.teacher() as teacher:
        lesson = run_to_end(ask_teacher(teacher, "zorv thing"))
        answers = lesson.answers
        batch = answers.noised(range(9), model.denoiser, torch.Generator())
        noisy = model.denoiser.add_noise(batch.x0, batch.noise, batch.sigma)
        with torch.no_grad():
            torch.testing.assert_close(model.denoiser(noisy, batch.sigma, batch.cond), batch.predicted)
    assert lesson.captions == ["a photo of zorv thing", "zorv thing in a park", "zorv thing at night", "zorv thing at night"]
    assert len(lesson.pictures) == 4 and (len(answers.latents), len(lesson.held_out.latents)) == (128, 16)
    taught = {latent.data_ptr() for latent in answers.latents}
    assert len(taught) == 2 and not taught & {latent.data_ptr() for latent in lesson.held_out.latents}
    with torch.no_grad():  # without the LoRA it would have answered otherwise
        bare = model.denoiser(noisy, batch.sigma, batch.cond)
    assert float((bare - batch.predicted).abs().max()) > 1e-3


def test_the_same_file_is_found_again_and_nobody_is_asked(tmp_path, empty, model):
    path = lora_file(tmp_path / "a.safetensors", model)
    first = adopt(empty, model, path)
    adoption = replace(adopted_file(model, path), teacher=lambda: pytest.fail("asked again"))
    again = run_to_end(train_steps(first.library, WORDS, SETTINGS, model, adoption=adoption))
    assert again.reused and again.record == first.record and again.report.to_dict() == first.report.to_dict()


@pytest.mark.parametrize("fast", [False, True])
def test_another_file_or_way_under_the_same_name_is_told(tmp_path, empty, model, fast):
    library = adopt(empty, model, lora_file(tmp_path / "a.safetensors", model)).library
    other = lora_file(tmp_path / "b.safetensors", model, seed=0 if fast else 1)
    before = contents(library.path)
    with pytest.raises(SeqLoRAError, match="has a concept 'rex' already, taught with another LoRA file; choose another name"):
        adopt(library, model, other, fast)
    assert contents(library.path) == before
    assert adopt(library, model, other, fast, replace=True).library.names == ["rex"]


def test_what_does_nothing_is_refused_before_anything_is_written(tmp_path, empty, model):
    before = contents(empty.path)
    with pytest.raises(SeqLoRAError, match="With a.safetensors on, the model predicts what it does without; check the trigger"):
        adopt(empty, model, lora_file(tmp_path / "a.safetensors", model, size=0.0))
    with pytest.raises(SeqLoRAError, match="With the LoRA on, the model draws what is no number"):
        adopt(empty, model, lora_file(tmp_path / "b.safetensors", model, size=1e30))
    assert contents(empty.path) == before


def test_an_adoption_that_was_cancelled_goes_on_bit_for_bit(tmp_path, model):
    path = lora_file(tmp_path / "a.safetensors", model)

    def stop_at(step: int):
        def tell(progress: Progress) -> None:
            if progress.phase == "training" and progress.step == step:
                raise KeyboardInterrupt

        return tell

    taught = []
    for name in ("one", "two"):
        library = Library.create(tmp_path / name / "mine", 4, 2, "attention and mlp")
        if name == "two":
            with pytest.raises(KeyboardInterrupt):
                run_to_end(train_steps(library, WORDS, SETTINGS, model, adoption=adopted_file(model, path)), stop_at(20))
        taught.append(adopt(library, model, path))
    whole, resumed = taught
    assert resumed.report.resumed_at == 20 and resumed.report.kept == whole.report.kept
    tensors = [load_file(one.library.path / one.record.file) for one in taught]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_a_trigger_learns_vectors_here_too(tmp_path, empty):
    model = DrawingReader()
    taught = adopt(empty, model, lora_file(tmp_path / "a.safetensors", model), settings=SETTINGS.with_(trigger_vectors=2))
    assert taught.library.vectors("rex")["small"].shape == (2, WIDTH)


def test_what_is_no_linear_layer_of_the_model_is_told(tmp_path, empty, model):
    more = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(3, 2)}
    taught = adopt(empty, model, lora_file(tmp_path / "a.safetensors", model, more=more), fast=True)
    assert "1 parts of a.safetensors are no linear layers of this model and were left out" in taught.report.note


# -- the command line, on the demo model


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A LoRA of an emoji that knows nothing of a library."""
    folder, model, emoji = tmp_path_factory.mktemp("plain"), DemoModel(), held_out_emoji()[3]
    library = Library.create(folder / "alone", 8, 1, "attention and mlp")
    settings = method_settings("lora", PLAIN_SETTINGS.with_(steps=30, batch_size=4))
    taught = run_to_end(train_steps(library, request_of(emoji), settings, model))
    return export_composed(taught.library, {emoji.name: 1.0}, folder / "emoji.safetensors", "kohya", "fp16")


def command(tmp_path: Path, file: Path, *more: str) -> list[str]:
    emoji = held_out_emoji()[3]
    words = ["--trigger", trigger_word(emoji), "--class-word", emoji.class_word]
    return ["adopt", str(tmp_path / "lib"), str(file), *words, "--rank", "4", "--capacity", "4", *more]


def test_the_command_adopts_a_file(tmp_path, plain, monkeypatch, capsys):
    monkeypatch.setattr(DemoModel, "generic_captions", DemoModel.generic_captions[:4])
    monkeypatch.setattr(DemoModel, "contexts", DemoModel.contexts[:3])
    assert main(command(tmp_path, plain, "--steps", "12")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["concept"] == "emoji" and told["adopted_from"] == "emoji.safetensors" and told["steps"] == 12
    assert told["kept"] > 0.4
    assert main(command(tmp_path, plain, "--steps", "12")) == 0
    assert json.loads(capsys.readouterr().out)["reused"]


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda file: file.write_bytes(b"PK"), "cannot be read"),
        (lambda file: None, "No such file"),
        (lambda file: save_file({"blocks.0.lora_up.weight": torch.ones(2, 2)}, file), "none of the layers"),
        (lambda file: save_file({"diffusion_model.x.hada_w1_a": torch.ones(2, 2)}, file), "is a LoHa, not a plain LoRA"),
    ],
    ids=["damaged", "missing", "another model", "loha"],
)
def test_a_file_that_cannot_be_adopted_is_one_sentence_and_leaves_no_library(tmp_path, capsys, make, sentence):
    make(tmp_path / "file.safetensors")
    assert main(command(tmp_path, tmp_path / "file.safetensors")) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "lib").exists()


def test_words_are_looked_at_before_the_file(tmp_path, capsys):
    assert main(["adopt", str(tmp_path / "lib"), "nowhere.safetensors", "--trigger", " "]) == 1
    assert "The trigger is empty" in capsys.readouterr().err and not (tmp_path / "lib").exists()
