"""Concept Region in a running host, on a library taught there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.support.hosts import HostServer, error_message
from tests.support.prompts import teaching

pytestmark = pytest.mark.host
LEFT, RIGHT = {"x": 0.0, "y": 0.0, "width": 0.5, "height": 1.0}, {"x": 0.5, "y": 0.0, "width": 0.5, "height": 1.0}


@pytest.fixture(scope="module")
def library(server: HostServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of one with two concepts, 'rex' and 'milo'."""
    name = tmp_path_factory.mktemp("regions").name
    quick = {"steps": 3, "batch_size": 1, "method": "lora", "preview_every": 0}
    prompt = teaching(name, concept="rex", **quick)
    prompt["second"] = teaching(name, concept="milo", **quick)["train"]
    prompt["second"]["inputs"] |= {"library": ["train", 0], "trigger": "vosk", "class_word": "toy", "seed": 1}
    server.run(prompt | {"shown": {"class_type": "PreviewAny", "inputs": {"source": ["second", 2]}}})
    return name


def graph(
    library: str, places: list[dict[str, Any]], text: str = "a photo", size: tuple[int, int] = (128, 64)
) -> dict[str, dict]:
    made: dict[str, dict] = {}
    for number, place in enumerate(places):
        before = {"regions": [f"place{number - 1}", 0]} if number else {}
        made[f"place{number}"] = {"class_type": "SeqLoRA_ConceptRegion", "inputs": place | before}
    prompt = {"model": ["demo", 0], "clip": ["demo", 1], "library": ["load", 0], "text": text, "negative": ""}
    prompt |= {"regions": [f"place{len(places) - 1}", 0]} if places else {}
    sampler = {"model": ["prompt", 0], "positive": ["prompt", 1], "negative": ["prompt", 2], "latent_image": ["latent", 0]}
    sampler |= {"seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return made | {
        "demo": {"class_type": "SeqLoRA_DemoModel", "inputs": {}},
        "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": library}},
        "prompt": {"class_type": "SeqLoRA_ConceptPrompt", "inputs": prompt},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": size[0], "height": size[1], "batch_size": 1}},
        "sample": {"class_type": "KSampler", "inputs": sampler},
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": "regions"}},
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["prompt", 3]}},
    }


def drawn(server: HostServer, made: dict[str, dict]) -> np.ndarray:
    (file,) = server.run(made)["save"]["latents"]
    return load_file(server.output_dir / file["subfolder"] / file["filename"])["latent_tensor"].numpy()


def refusal(server: HostServer, made: dict[str, dict]) -> str:
    return error_message(server.wait(server.post_prompt(made)))


def test_concepts_of_regions_are_switched_on_with_their_strengths(server: HostServer, library: str):
    places = [{"text": "a photo of @rex:0.5", **LEFT}, {"text": "a photo of @milo", **RIGHT}]
    outputs = server.run(graph(library, places, "a photo of @rex"))
    assert outputs["shown"]["text"] == ["rex: 0.5\nmilo: 1"]


def test_where_a_concept_is_decides_about_the_picture(server: HostServer, library: str):
    here = drawn(server, graph(library, [{"text": "a photo of @rex", **LEFT}, {"text": "a photo of @milo", **RIGHT}]))
    there = drawn(server, graph(library, [{"text": "a photo of @milo", **LEFT}, {"text": "a photo of @rex", **RIGHT}]))
    assert np.isfinite(here).all() and np.abs(here - there).max() > 1e-3


def test_a_mask_is_a_box_of_another_kind(server: HostServer, library: str):
    box = drawn(server, graph(library, [{"text": "a photo of @rex", **LEFT}]))
    masked = graph(library, [{"text": "a photo of @rex", **RIGHT, "mask": ["whole", 0]}])
    masked["left"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}}
    masked["empty"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 64}}
    joined = {"destination": ["empty", 0], "source": ["left", 0], "x": 0, "y": 0, "operation": "add"}
    masked["whole"] = {"class_type": "MaskComposite", "inputs": joined}
    assert np.array_equal(box, drawn(server, masked))


def test_a_region_without_a_concept_places_its_text_only(server: HostServer, library: str):
    placed = drawn(server, graph(library, [{"text": "a photo of a red car", **LEFT}]))
    assert np.abs(placed - drawn(server, graph(library, []))).max() > 1e-3


def test_what_cannot_be_is_one_sentence(server: HostServer, library: str):
    assert "has no text" in refusal(server, graph(library, [{"text": " ", **LEFT}]))
    assert "holds nothing of the picture" in refusal(server, graph(library, [{"text": "@rex", **LEFT, "width": 0.0}]))
    two = [{"text": "@rex:0.5", **LEFT}, {"text": "@rex", **RIGHT}]
    assert "Two regions give @rex two strengths" in refusal(server, graph(library, two))
    empty = graph(library, [{"text": "@rex", **LEFT, "mask": ["nothing", 0]}])
    empty["nothing"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 8, "height": 8}}
    assert "mask of a Concept Region is empty" in refusal(server, empty)
    assert "as many as the picture" in refusal(server, graph(library, [{"text": "@rex", **LEFT}], size=(32, 80)))
