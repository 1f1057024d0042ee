"""Concept Prompt against the nodes that it stands for: what it draws is what Apply and two text encoders draw."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from seqlora.library.store import Library
from tests.support.hosts import HostServer, error_message
from tests.support.prompts import teaching

pytestmark = pytest.mark.host
QUICK = {"steps": 3, "batch_size": 1, "method": "lora", "preview_every": 0}


@pytest.fixture(scope="module")
def library(server: HostServer, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Three concepts: 'rex', 'red kettle', and one that nobody names."""
    name = tmp_path_factory.mktemp("prompt").name
    prompt, before = teaching(name, concept="rex", **QUICK), "train"
    for number, (concept, trigger) in enumerate((("red kettle", "vosk"), ("other", "mivu")), 1):
        train = teaching(name, concept=concept, **QUICK)["train"]
        train["inputs"] |= {"library": [before, 0], "trigger": trigger, "class_word": "kettle", "seed": number}
        prompt[concept], before = train, concept
    shown = {"class_type": "PreviewAny", "inputs": {"source": [before, 2]}}
    server.run(prompt | {"shown": shown})
    return Library.open(server.models_dir / "seqlora" / name)


def drawn(server: HostServer, graph: dict[str, dict], model: list, positive: list, negative: list) -> bytes:
    """The latents that a sampler makes of it."""
    sampler = {"model": model, "positive": positive, "negative": negative, "latent_image": ["latent", 0], "seed": 1, "steps": 3}
    sampler |= {"cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    graph = graph | {
        "demo": {"class_type": "SeqLoRA_DemoModel", "inputs": {}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sample": {"class_type": "KSampler", "inputs": sampler},
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": "prompt"}},
    }
    (file,) = server.run(graph)["save"]["latents"]
    return load_file(server.output_dir / file["subfolder"] / file["filename"])["latent_tensor"].numpy().tobytes()


def named(server: HostServer, library: Library, text: str, negative: str = "") -> bytes:
    inputs = {"model": ["demo", 0], "clip": ["demo", 1], "library": ["load", 0], "text": text, "negative": negative}
    graph = {
        "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": library.path.name}},
        "prompt": {"class_type": "SeqLoRA_ConceptPrompt", "inputs": inputs},
    }
    return drawn(server, graph, ["prompt", 0], ["prompt", 1], ["prompt", 2])


def by_hand(server: HostServer, library: Library, concepts: str, text: str, negative: str = "") -> bytes:
    inputs = {"model": ["demo", 0], "library": ["load", 0], "concepts": concepts, "strength": 1.0}
    graph = {
        "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": library.path.name}},
        "apply": {"class_type": "SeqLoRA_ApplyComposed", "inputs": inputs},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["demo", 1]}},
        "against": {"class_type": "CLIPTextEncode", "inputs": {"text": negative, "clip": ["demo", 1]}},
    }
    return drawn(server, graph, ["apply", 0], ["text", 0], ["against", 0])


def test_the_concepts_that_are_named_are_on_and_no_others(server: HostServer, library: Library):
    subject = library.find("rex")
    said = f"a photo of {subject.trigger} {subject.class_word} beside vosk kettle, (sunset:1.2)"
    found = named(server, library, 'a photo of @rex beside @"red kettle":0.5, (sunset:1.2)', "a @other")
    assert found == by_hand(server, library, "rex\nred kettle: 0.5", said, "a mivu kettle")
    assert found != by_hand(server, library, "*", said, "a mivu kettle")


def test_a_written_trigger_switches_its_concept_on(server: HostServer, library: Library):
    assert named(server, library, "a vosk in the sun") == by_hand(server, library, "red kettle", "a vosk in the sun")


def test_apply_takes_from_a_prompt_what_it_names(server: HostServer, library: Library):
    said, subject = 'a photo of @rex beside @"red kettle":0.5', library.find("rex")
    expected = f"a photo of {subject.trigger} {subject.class_word} beside vosk kettle"
    inputs = {"model": ["demo", 0], "library": ["load", 0], "concepts": "auto: 0.8", "strength": 1.0, "prompt": said}
    graph = {
        "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": library.path.name}},
        "apply": {"class_type": "SeqLoRA_ApplyComposed", "inputs": inputs},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"text": ["apply", 3], "clip": ["demo", 1]}},
        "against": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["demo", 1]}},
    }
    found = drawn(server, graph, ["apply", 0], ["text", 0], ["against", 0])
    assert found == by_hand(server, library, "rex: 0.8\nred kettle: 0.4", expected)
    del inputs["prompt"]
    demo = {"demo": {"class_type": "SeqLoRA_DemoModel", "inputs": {}}, "load": graph["load"], "apply": graph["apply"]}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["apply", 2]}}
    assert "connect a prompt" in error_message(server.wait(server.post_prompt(demo | {"shown": shown})))


def test_a_prompt_that_names_none_draws_with_the_bare_model(server: HostServer, library: Library):
    encoded = {"class_type": "CLIPTextEncode", "inputs": {"text": "a photo of a cat", "clip": ["demo", 1]}}
    against = {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["demo", 1]}}
    bare = drawn(server, {"text": encoded, "against": against}, ["demo", 0], ["text", 0], ["against", 0])
    assert named(server, library, "a photo of a cat") == bare


def test_an_unknown_name_is_one_sentence(server: HostServer, library: Library):
    inputs = {"model": ["demo", 0], "clip": ["demo", 1], "library": ["load", 0], "text": "@rax", "negative": ""}
    prompt = {
        "demo": {"class_type": "SeqLoRA_DemoModel", "inputs": {}},
        "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": library.path.name}},
        "prompt": {"class_type": "SeqLoRA_ConceptPrompt", "inputs": inputs},
    }
    assert "did you mean @rex?" in error_message(server.wait(server.post_prompt(prompt)))


def test_what_was_switched_on_is_shown(server: HostServer, library: Library):
    inputs = {"model": ["demo", 0], "clip": ["demo", 1], "library": ["load", 0], "text": "@red kettle:0.5", "negative": ""}
    prompt = {
        "demo": {"class_type": "SeqLoRA_DemoModel", "inputs": {}},
        "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": library.path.name}},
        "prompt": {"class_type": "SeqLoRA_ConceptPrompt", "inputs": inputs},
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["prompt", 3]}},
    }
    outputs = server.run(prompt)
    assert outputs["shown"]["text"] == ["red kettle: 0.5"] and outputs["prompt"]["text"] == ["red kettle: 0.5\nvosk kettle"]
