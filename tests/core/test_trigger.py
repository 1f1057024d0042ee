"""Learned triggers: vectors of its own that a concept learns in the place of its trigger's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from seqlora.cli.main import main
from seqlora.diffusion.batches import Examples
from seqlora.errors import SeqLoRAError
from seqlora.io.safetensors_file import read_metadata, write_tensors
from seqlora.io.text import split_at_words
from seqlora.library.repair import repair
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.lora.vectors import KEY, pack, to_embedding, unpack
from seqlora.settings import Settings
from seqlora.training.progress import Progress, run_to_end
from seqlora.training.train import train_steps
from seqlora.training.trainer import train_concept
from seqlora.training.trigger import LearnedTrigger
from tests.support.small import (
    QUICK,
    ReadingModel,
    contents,
    relist,
    small_examples,
    small_layers,
    small_ranks,
    small_request,
)

PLAIN = QUICK.with_(steps=12, batch_size=2, interference_weight=0.0, basis_init="pca")  # needs no prior
LEARNED, NONE = PLAIN.with_(trigger_vectors=2), PLAIN.with_(trigger_vectors=0)


def make(path: Path) -> Library:
    return Library.create(path, rank=4, capacity=8, targets="attention and mlp")


def taught(library: Library, name: str, settings: Settings = LEARNED, seed: int = 0) -> Library:
    return run_to_end(train_steps(library, small_request(name, seed), settings, ReadingModel())).library


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Library:
    library = taught(make(tmp_path_factory.mktemp("models") / "pets"), "cat")
    return taught(library, "dog", seed=1)


def test_vectors_are_learned_and_kept(two: Library):
    for name in two.names:
        (learned,) = two.vectors(name).values()
        (start,) = ReadingModel().own_vectors(two.find(name).trigger, 2).values()
        assert learned.shape == start.shape and not torch.allclose(learned, start, rtol=0.01)
        assert not torch.equal(learned[0], learned[1]) or torch.equal(start[0], start[1])
    assert set(two.triggers(two.names)) == {"zyxcat", "zyxdog"} and two.triggers([]) == {}
    assert verify(two.path) == []


def test_none_is_as_it_was_before_there_were_any(tmp_path: Path):
    """To the bit: pairs, losses, moments."""
    one = run_to_end(train_steps(make(tmp_path / "a"), small_request("cat"), NONE, ReadingModel()))
    model = ReadingModel()
    model.text_encoders = ()
    other = run_to_end(train_steps(make(tmp_path / "b"), small_request("cat"), LEARNED, model))
    assert one.library.load("cat").keys() == other.library.load("cat").keys()
    for name, pair in one.library.load("cat").items():
        assert all(torch.equal(a, b) for a, b in zip(pair, other.library.load("cat")[name], strict=True))
    assert one.losses == other.losses and one.record.request == other.record.request
    assert one.library.vectors("cat") == {} and KEY not in read_metadata(one.library.path / one.record.file)
    assert one.report.note == "" and "takes no vectors" in other.report.note
    assert one.record.settings["trigger_vectors"] == other.record.settings["trigger_vectors"] == 0


def test_they_are_part_of_what_was_asked_for(tmp_path: Path):
    library = taught(make(tmp_path / "pets"), "cat")
    again = run_to_end(train_steps(library, small_request("cat"), LEARNED, ReadingModel()))
    assert again.reused
    for other in (NONE, LEARNED.with_(trigger_vectors=1), LEARNED.with_(trigger_learning_rate=0.02)):
        with pytest.raises(SeqLoRAError, match="taught with another settings"):
            run_to_end(train_steps(library, small_request("cat"), other, ReadingModel()))


class Watched(ReadingModel):
    """Notes what its text encoder is asked for while gradients are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, ...]] = []

    def encode_captions(self, captions, triggers=None):
        if torch.is_grad_enabled() and triggers:
            self.asked.append(tuple(captions))
        return super().encode_captions(captions, triggers or {})


def test_a_step_encodes_each_caption_that_names_the_trigger_once():
    model, trigger = Watched(), "zorv"
    captions = ["a zorv dog", "a zorv dog", "a dog", "the Zorv"]
    words = LearnedTrigger(model, trigger, captions, 1)
    examples = Examples([torch.zeros(1)] * 4, model.encode_captions(captions))
    conds = words.conds(examples, [0, 1, 2, 3, 0])
    assert model.asked == [("a zorv dog", "the Zorv")]
    assert conds[2] is examples.conds[2] and conds[0] is conds[1] is conds[4]
    assert conds[0].requires_grad and not conds[2].requires_grad


def test_the_gradient_is_that_of_the_loss():
    """Against finite differences, in float64, through the encoder of a model."""
    model = ReadingModel()
    words = LearnedTrigger(model, "zorv", ["a zorv dog"], 2)
    words.leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in words.leaves.items()}
    examples = Examples([torch.zeros(1)], [torch.zeros(1)])

    def loss(leaf: torch.Tensor) -> torch.Tensor:
        words.leaves = {"small": leaf}
        return torch.tanh(words.conds(examples, [0])[0]).square().sum()

    assert torch.autograd.gradcheck(loss, [words.leaves["small"]])


def test_one_rate_suits_encoders_of_any_size(monkeypatch: pytest.MonkeyPatch):
    """Ten times larger vectors make ten times larger steps."""
    found = []
    for size in (1, 10):
        model = ReadingModel()
        start = {"small": model.own_vectors("zorv", 1)["small"] * size}
        monkeypatch.setattr(model, "own_vectors", lambda word, count, start=start: start)
        words = LearnedTrigger(model, "zorv", ["zorv"], 1)
        assert float(words.leaves["small"].detach().square().mean()) == pytest.approx(1)
        found.append(words.values()["small"])
    assert torch.allclose(found[1], 10 * found[0])


def test_what_the_layers_see_is_measured_with_the_learned_vectors(prior):
    model = ReadingModel()
    examples = small_examples(0)
    captions = ["a zorv dog"] * len(examples.latents)
    settings = LEARNED.with_(trigger_learning_rate=0.2)

    def run(settings: Settings):
        words = LearnedTrigger(model, "zorv", captions, 2)
        layers, ranks = small_layers(model.denoiser), small_ranks(model.denoiser)
        return run_to_end(train_concept(model.denoiser, layers, examples, settings, ranks, prior=prior, trigger=words)), words

    still, _ = run(settings.with_(trigger_learning_rate=0.0))
    moved, words = run(settings)
    again = LearnedTrigger(model, "zorv", captions, 2)
    again.leaves = {name: leaf.detach() for name, leaf in words.leaves.items()}
    fresh = run_to_end(
        train_concept(
            model.denoiser,
            small_layers(model.denoiser),
            again.examples(examples),
            NONE,
            small_ranks(model.denoiser),
            prior=prior,
        )
    )
    name = next(iter(still.pairs))
    assert not torch.equal(moved.moments[name].sketch, still.moments[name].sketch)
    assert torch.equal(moved.moments[name].sketch, fresh.moments[name].sketch)
    assert torch.equal(moved.vectors["small"], words.values()["small"])


@pytest.fixture(scope="module")
def prior():
    from seqlora.training.measure import measure_prior

    model = ReadingModel()
    uncond, *generic = model.encode_captions(["", *model.generic_captions])
    return run_to_end(measure_prior(model.denoiser, small_layers(model.denoiser), (16, 32), generic, uncond))


@pytest.mark.parametrize(
    "changes", [{"interference_weight": 0.4}, {"schedule": "alternating"}, {"schedule": "finite_difference", "inner_steps": 1}]
)
def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, changes: dict):
    settings = LEARNED.with_(**changes)
    whole = run_to_end(train_steps(make(tmp_path / "a"), small_request("cat"), settings, ReadingModel()))
    library = make(tmp_path / "b")
    steps: Iterator[Progress] = train_steps(library, small_request("cat"), settings, ReadingModel())
    for progress in steps:
        if progress.phase == "training" and progress.step >= 5:
            steps.close()  # type: ignore[attr-defined]
            break
    parts = run_to_end(train_steps(library, small_request("cat"), settings, ReadingModel()))
    assert parts.report.resumed_at and parts.losses == whole.losses
    assert torch.equal(parts.library.vectors("cat")["small"], whole.library.vectors("cat")["small"])
    one, other = parts.library.moments("cat"), whole.library.moments("cat")
    assert one.output_energy == other.output_energy
    assert all(torch.equal(one.by_input[name].sketch, other.by_input[name].sketch) for name in other.by_input)
    for name, pair in whole.library.load("cat").items():
        assert all(torch.equal(a, b) for a, b in zip(pair, parts.library.load("cat")[name], strict=True))


def test_keeping_early_keeps_the_vectors(tmp_path: Path):
    kept = run_to_end(
        train_steps(make(tmp_path / "pets"), small_request("cat"), LEARNED, ReadingModel()),
        lambda progress: "keep" if progress.step == 3 else None,
    )
    assert kept.report.ended_early_at == 3 and kept.library.vectors("cat")


def test_whoever_watches_sees_them_as_they_are(tmp_path: Path):
    seen = []

    def look(progress: Progress) -> None:
        if progress.snapshot:
            seen.append(progress.snapshot.triggers()["zyxcat"]["small"].detach().clone())

    run_to_end(train_steps(make(tmp_path / "pets"), small_request("cat"), LEARNED, ReadingModel()), look)
    assert len(seen) == LEARNED.steps and not torch.equal(seen[0], seen[-1])


# -- files


def test_a_rename_a_copy_and_a_repair_keep_them(two: Library, tmp_path: Path):
    from seqlora.library.copy import copy

    library = copy(two, two.names, tmp_path / "copied")
    before = library.vectors("cat")["small"]
    with library.writing() as writer:
        library = writer.rename("cat", "lion")
    assert torch.equal(library.vectors("lion")["small"], before) and verify(library.path) == []
    (library.path / "library.json").unlink()
    mended, _ = repair(library.path)
    assert torch.equal(mended.vectors("lion")["small"], before)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no base64!",
        pack({"clip_l": torch.zeros(1, 4)})[:-8],
        pack({"clip_l": torch.full((1, 4), float("nan"))}),
        pack({"clip_l": torch.zeros(100, 4)}),
        pack({"clip_l": torch.zeros(4)}),
    ],
    ids=["nothing", "no text of ours", "half", "no numbers", "too many", "no list of vectors"],
)
def test_what_is_no_vectors_is_refused(text: str, two: Library, tmp_path: Path):
    from seqlora.library.copy import copy

    library = copy(two, two.names, tmp_path / "copied")
    path = library.path / library.find("cat").file
    header = read_metadata(path) | {KEY: text}
    sha256 = write_tensors(path, library.tensors(library.find("cat")), header)
    library = relist(library, "cat", sha256=sha256)
    with pytest.raises(SeqLoRAError, match="the trigger's vectors cannot be read.*restore the file"):
        library.vectors("cat")
    assert any("vectors cannot be read" in line for line in verify(library.path))
    assert library.vectors("dog") and contents(two.path)


def test_vectors_as_text_come_back():
    vectors = {"clip_l": torch.randn(2, 8), "clip_g": torch.randn(2, 12)}
    again = unpack(pack(vectors))
    assert again.keys() == vectors.keys() and all(torch.equal(again[name], vectors[name]) for name in vectors)
    assert load(save(to_embedding(vectors))).keys() == {"clip_l", "clip_g"}
    assert to_embedding({"clip_l": vectors["clip_l"]}).keys() == {"emb_params"}


def test_an_export_writes_embeddings_beside_the_lora(two: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["export", str(two.path), "cat: 0.5", "--out", str(tmp_path / "cat.safetensors")])
    embedding = tmp_path / "embeddings" / "0001-cat.safetensors"
    assert capsys.readouterr().out.split() == [str(tmp_path / "cat.safetensors"), str(embedding)]
    assert torch.equal(load(embedding.read_bytes())["emb_params"], two.vectors("cat")["small"])
    assert read_metadata(embedding)["modelspec.trigger_phrase"] == "zyxcat"


def test_diffusers_loads_an_embedding(tmp_path: Path):
    pytest.importorskip("diffusers")
    from tests.support.tiny_pipelines import TEXT_WIDTH, tiny_sd

    vectors = {"clip_l": torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(0))}
    write_tensors(tmp_path / "zorv.safetensors", to_embedding(vectors))
    pipe = tiny_sd(tmp_path)
    pipe.load_textual_inversion(str(tmp_path / "zorv.safetensors"), token="zorv")
    ids = pipe.tokenizer.convert_tokens_to_ids(["zorv", "zorv_1"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], vectors["clip_l"])


def test_texts_are_split_at_words():
    assert split_at_words("Zorv dog, zorv_dog, zorva", ["zorv"]) == [("", "zorv"), (" dog, ", "zorv"), ("_dog, zorva", "")]
    assert split_at_words("red zorv beside zorv", ["zorv", "red zorv"]) == [("", "red zorv"), (" beside ", "zorv"), ("", "")]
    assert split_at_words("z\u0131", ["zi"]) == [("", "zi"), ("", "")]  # a letter without a dot, which a pattern takes for i
    assert split_at_words("a dog", []) == [("a dog", "")] and split_at_words("", ["zorv"]) == [("", "")]
    one, word, dog = "\u4e00\u53ea", "\u4f50\u5c14\u592b", "\u72d7"
    assert split_at_words(one + word + dog, [word]) == [(one, word), (dog, "")]


# -- the demo model


def test_the_demo_models_words_can_have_vectors_of_their_own():
    pytest.importorskip("diffusers")
    from seqlora.demo.demo_model import DemoModel
    from seqlora.demo.micro import MAX_WORDS

    model = DemoModel()
    captions = ["a photo of zorv dog", "a cat"]
    (plain, cat), own = model.encode_captions(captions), model.own_vectors("zorv", 1)
    same, cat_again = model.encode_captions(captions, {"zorv": own})
    assert torch.allclose(same, plain, atol=1e-5) and torch.equal(cat, cat_again)
    learned = {"micro": torch.randn(2, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()}
    two, cat_again = model.encode_captions(captions, {"zorv": learned})
    assert not torch.allclose(two[3], plain[3], atol=0.1) and torch.allclose(cat, cat_again, atol=1e-5)
    two.square().sum().backward()
    assert learned["micro"].grad is not None and learned["micro"].grad.abs().sum(1).min() > 0
    late = " ".join(["word"] * (MAX_WORDS - 1) + ["zorv"])  # the second vector is beyond what is read
    assert model.encode_captions([late], {"zorv": learned})[0].shape == plain.shape
