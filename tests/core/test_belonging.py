"""Pipelines: what decides how a concept comes out is told apart, and parts that do not belong together are one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel  # noqa: E402
from transformers import CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

from seqlora.backends.families import FAMILIES  # noqa: E402
from seqlora.backends.pipelines import PipelineModel  # noqa: E402
from seqlora.errors import SeqLoRAError  # noqa: E402
from seqlora.library.store import Library  # noqa: E402
from seqlora.training.train import train  # noqa: E402
from tests.support.small import QUICK, small_request  # noqa: E402
from tests.support.tiny_pipelines import (  # noqa: E402
    PIPELINES,
    SD_SCHEDULE,
    TEXT_WIDTH,
    XL_UNET,
    clip,
    t5,
    tiny_flux,
    tiny_sd,
    tiny_sd3,
    tiny_sdxl,
)


def model_of(pipe: Any) -> PipelineModel:
    return FAMILIES[type(pipe).__name__](pipe, torch.device("cpu"), torch.float32)


def add_one(part: torch.nn.Module) -> None:
    """To one tensor, the last of them."""
    with torch.no_grad():
        list(part.parameters())[-1].add_(1)


def shorter(tokenizer: Any) -> None:
    tokenizer.model_max_length = 20


CHANGES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a tensor of the UNet": ("sd", lambda pipe: add_one(pipe.unet), "model"),
    "a tensor of the VAE": ("sd", lambda pipe: add_one(pipe.vae), "VAE"),
    "a tensor of the text encoder": ("sd", lambda pipe: add_one(pipe.text_encoder), "text encoder"),
    "a tensor of the second text encoder": ("sdxl", lambda pipe: add_one(pipe.text_encoder_2), "text encoder"),
    "a tensor of the third text encoder": ("sd3", lambda pipe: add_one(pipe.text_encoder_3), "text encoder"),
    "a shorter window": ("sd", lambda pipe: shorter(pipe.tokenizer), "text encoder"),
    "words that a tokenizer learned": ("sd", lambda pipe: pipe.tokenizer.add_tokens("zorv"), "text encoder"),
    "another prediction": (
        "sd",
        lambda pipe: setattr(pipe, "scheduler", DDIMScheduler(**SD_SCHEDULE, prediction_type="v_prediction")),
        "sampling",
    ),
    "other noise levels": (
        "sd",
        lambda pipe: setattr(pipe, "scheduler", DDIMScheduler(**SD_SCHEDULE | {"beta_end": 0.013})),
        "sampling",
    ),
    "another shift": (
        "sd3",
        lambda pipe: setattr(pipe, "scheduler", FlowMatchEulerDiscreteScheduler(shift=1.0)),
        "sampling",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_part_of_a_request_is_told_apart(tmp_path: Path, what: str):
    kind, change, part = CHANGES[what]
    pipe = PIPELINES[kind](tmp_path)
    before, again = model_of(pipe).parts, model_of(pipe).parts
    assert before == again
    change(pipe)
    after = model_of(pipe).parts
    assert [name for name, value in before.items() if after[name] != value] == [part]


def test_a_word_falls_into_the_pieces_of_the_tokenizer_that_makes_most(tmp_path: Path):
    pipe = PIPELINES["sd3"](tmp_path)
    assert model_of(pipe).pieces("zorv") == 5  # letter by letter, and what stands for a space before them
    pipe.tokenizer_3 = None
    assert model_of(pipe).pieces("zorv") == 4


def with_(pipe: Any, **parts: Any) -> Any:
    for name, part in parts.items():
        setattr(pipe, name, part)
    return pipe


WIDE = 2 * TEXT_WIDTH
MISFITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "SD": (lambda folder: tiny_sd(folder, cross_attention_dim=48), "words are 32 wide, but the model takes 48"),
    "SDXL": (
        lambda folder: with_(tiny_sdxl(folder), unet=tiny_sdxl_unet(cross_attention_dim=48)),
        "words are 64 wide, but the model takes 48",
    ),
    "SDXL, pooled": (
        lambda folder: with_(tiny_sdxl(folder), unet=tiny_sdxl_unet(projection_class_embeddings_input_dim=6 * 8 + 48)),
        "pooled text is 32 wide, but the model takes 48",
    ),
    "SD3": (
        lambda folder: with_other_t5(tiny_sd3(folder), "text_encoder_3", 3 * TEXT_WIDTH),
        "words are 96 wide, but the model takes 64",
    ),
    "SD3, pooled": (
        lambda folder: with_projection(tiny_sd3(folder), 48),
        "pooled text is 80 wide, but the model takes 64",
    ),
    "Flux": (
        lambda folder: with_other_t5(tiny_flux(folder), "text_encoder_2", WIDE),
        "words are 64 wide, but the model takes 32",
    ),
    "Flux, pooled": (lambda folder: with_wide_clip(tiny_flux(folder)), "pooled text is 64 wide, but the model takes 32"),
}


def tiny_sdxl_unet(**changes: Any) -> Any:
    return UNet2DConditionModel(**(XL_UNET | changes))


def with_other_t5(pipe: Any, name: str, width: int) -> Any:
    tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
    return with_(pipe, **{name: t5(tokenizer, width)})


def with_projection(pipe: Any, width: int) -> Any:
    config = clip(pipe.tokenizer_2, projected=True).config
    config.projection_dim = width
    return with_(pipe, text_encoder_2=CLIPTextModelWithProjection(config).eval())


def with_wide_clip(pipe: Any) -> Any:
    config = clip(pipe.tokenizer).config
    config.hidden_size = WIDE
    return with_(pipe, text_encoder=CLIPTextModel(config).eval())


@pytest.mark.parametrize("what", MISFITS)
def test_a_text_encoder_of_another_width_is_one_sentence(tmp_path: Path, what: str):
    make, said = MISFITS[what]
    library = Library.create(tmp_path / "pets", 2, 4, "attention")
    files = {path: path.stat().st_mtime_ns for path in library.path.rglob("*") if path.name != ".lock"}
    with pytest.raises(SeqLoRAError, match=f"The text encoder's {said}; give a pipeline whose parts belong together"):
        train(library, small_request("rex"), QUICK, model_of(make(tmp_path / "pipe")))
    assert {path: path.stat().st_mtime_ns for path in library.path.rglob("*") if path.name != ".lock"} == files
