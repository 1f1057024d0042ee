"""Learned triggers through the text encoders of diffusers' pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seqlora.api import load_model
from seqlora.library.store import Library
from seqlora.settings import Settings
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import small_request
from tests.support.tiny_pipelines import TEXT_WIDTH, saved

CAPTION = "a photo of zorv dog"


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_word_means_its_vectors(kind: str, tmp_path: Path):
    model = load_model(saved(kind, tmp_path), "cpu", torch.float32)
    (plain,) = model.encode_captions([CAPTION])
    same = model.encode_captions([CAPTION], {"zorv": model.own_vectors("zorv", 4)})[0]  # its letters are its tokens
    assert all(torch.allclose(same[key], plain[key], atol=1e-5) for key in plain)
    generator = torch.Generator().manual_seed(0)
    own = {name: torch.randn(2, TEXT_WIDTH, generator=generator).requires_grad_() for name in model.text_encoders}
    (learned,) = model.encode_captions([CAPTION], {"zorv": own})
    assert learned.keys() == plain.keys()
    assert all(learned[key].shape == plain[key].shape and not torch.allclose(learned[key], plain[key]) for key in plain)
    sum(part.square().sum() for part in learned.values()).backward()
    assert all(vectors.grad is not None and vectors.grad.abs().sum(1).min() > 0 for vectors in own.values())
    (after,) = model.encode_captions([CAPTION])
    assert all(torch.equal(after[key], plain[key]) for key in plain)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_it_means_what_diffusers_makes_of_the_exported_embedding(kind: str, tmp_path: Path):
    model = load_model(saved(kind, tmp_path), "cpu", torch.float32)
    own = {name: torch.randn(2, TEXT_WIDTH) for name in model.text_encoders}
    (ours,) = model.encode_captions([CAPTION], {"zorv": own})
    pipe = model.pipe  # type: ignore[attr-defined]
    parts = [("clip_l", pipe.text_encoder, pipe.tokenizer)]
    if kind == "sdxl":
        parts.append(("clip_g", pipe.text_encoder_2, pipe.tokenizer_2))
    for name, encoder, tokenizer in parts[: 1 if kind == "sd" else 2]:
        if "zorv" not in tokenizer.get_vocab():
            pipe.load_textual_inversion({"emb": own[name]}, token="zorv", text_encoder=encoder, tokenizer=tokenizer)
    theirs = model.encode_captions([CAPTION])[0]
    assert torch.allclose(ours["text"][..., :TEXT_WIDTH], theirs["text"][..., :TEXT_WIDTH], atol=1e-5)


def test_a_concept_is_taught_with_vectors(tmp_path: Path):
    model = load_model(saved("sd", tmp_path), "cpu", torch.float32)
    settings = Settings(steps=3, batch_size=2, learning_rate=1e-3, trigger_vectors=2, interference_weight=0.0, basis_init="pca")
    library = Library.create(tmp_path / "pets", 2, 4, "attention")
    taught = run_to_end(train_steps(library, small_request("cat", class_word="cat"), settings, model))
    (learned,) = taught.library.vectors("cat").values()
    assert learned.shape == (2, TEXT_WIDTH) and "takes no vectors" not in taught.report.note
    assert not torch.equal(learned, model.own_vectors("zyxcat", 2)["clip_l"])
