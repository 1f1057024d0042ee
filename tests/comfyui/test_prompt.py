"""Concept Prompt against the nodes that it stands for: what it draws is what Apply and two text encoders draw."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from seqlora.library.store import Library
from tests.support.hosts import HostServer, error_message
from tests.support.prompts import teaching

pytestmark = pytest.mark.host
QUICK = {"steps": 3, "batch_size": 1, "method": "lora", "preview_every": 0}
# Nothing of the base model is measured.
LEARNED = {"steps": 3, "batch_size": 1, "preview_every": 0, "trigger_vectors": 2, "trigger_learning_rate": 0.2}
LEARNED |= {"basis_init": "random", "interference_weight": 0.0, "co_training": "modular"}


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


def by_hand(
    server: HostServer, library: Library, concepts: str, text: str, negative: str = "", clip: tuple[str, int] = ("demo", 1)
) -> bytes:
    """`clip` is where prompts take the text encoder from."""
    inputs = {"model": ["demo", 0], "library": ["load", 0], "concepts": concepts, "strength": 1.0}
    inputs |= {"clip": ["demo", 1]} if clip[0] == "apply" else {}
    graph = {
        "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": library.path.name}},
        "apply": {"class_type": "SeqLoRA_ApplyComposed", "inputs": inputs},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": list(clip)}},
        "against": {"class_type": "CLIPTextEncode", "inputs": {"text": negative, "clip": list(clip)}},
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


# -- learned triggers


@pytest.fixture(scope="module")
def learned(server: HostServer, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Two concepts with vectors of their own: 'rex', and 'max', whose trigger is the same."""
    name = tmp_path_factory.mktemp("learned").name
    prompt = teaching(name, concept="rex", **LEARNED)
    second = teaching(name, concept="max", **LEARNED)["train"]
    second["inputs"] |= {"library": ["train", 0], "seed": 1}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["second", 2]}}
    server.run(prompt | {"second": second, "shown": shown})
    return Library.open(server.models_dir / "seqlora" / name)


def test_a_learned_trigger_means_its_vectors_with_nothing_else_to_do(server: HostServer, learned: Library):
    rex = learned.find("rex")
    said, against = f"a photo of {rex.trigger} {rex.class_word}, (sunset:1.2)", f"({rex.subject}:0.5)"
    found = named(server, learned, "a photo of @rex, (sunset:1.2)", "(@rex:0.5)")
    assert found == by_hand(server, learned, "rex", said, against, ("apply", 1))
    assert found != by_hand(server, learned, "rex", said, against)


def test_a_concept_that_is_off_keeps_its_vectors_to_itself(server: HostServer, learned: Library):
    subject = learned.find("rex").subject
    assert named(server, learned, "@rex:0 in the sun") == by_hand(server, learned, "", f"{subject} in the sun")
    assert named(server, learned, "a cat", "@rex") == by_hand(server, learned, "", "a cat", subject, ("apply", 1))


def applied(server: HostServer, library: Library, concepts: str, clip: bool) -> str:
    """What is said meanwhile."""
    inputs = {"model": ["demo", 0], "library": ["load", 0], "concepts": concepts, "strength": 1.0}
    inputs |= {"clip": ["demo", 1]} if clip else {}
    before = len(server.log_tail(10**6))
    server.run(
        {
            "demo": {"class_type": "SeqLoRA_DemoModel", "inputs": {}},
            "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": library.path.name}},
            "apply": {"class_type": "SeqLoRA_ApplyComposed", "inputs": inputs},
            "shown": {"class_type": "PreviewAny", "inputs": {"source": ["apply", 2]}},
        }
    )
    return server.log_tail(10**6)[before:]


def test_what_is_missing_for_a_learned_trigger_is_said(server: HostServer, learned: Library):
    assert "connect clip" in applied(server, learned, "rex", clip=False)
    assert "rex and max have one trigger" in applied(server, learned, "*", clip=True)
    assert "trigger" not in applied(server, learned, "max", clip=True)


def test_an_export_writes_what_the_host_reads_as_embeddings(server: HostServer, learned: Library):
    inputs = {"library": ["load", 0], "concepts": "rex", "filename_prefix": "my own/rex", "format": "comfyui", "dtype": "fp16"}
    export = {
        "load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": learned.path.name}},
        "export": {"class_type": "SeqLoRA_ExportLoRA", "inputs": inputs},
    }
    shown = server.run(export)["export"]["text"][0].splitlines()
    assert shown == [
        "output/loras/my own/rex_00001.safetensors",
        f"instead of {learned.find('rex').trigger} write embedding:rex_00001/0001-rex",
    ]
    (vectors,) = load_file(server.output_dir / "embeddings" / "my_own" / "rex_00001" / "0001-rex.safetensors").values()
    assert vectors.equal(learned.vectors("rex")["micro"])
    assert "my_own/rex_00001/0001-rex.safetensors" in server.get("/models/embeddings")
    (server.output_dir / "embeddings" / "my_own" / "rex_00001" / "0001-rex.safetensors").unlink()
    server.run(export)
    assert (server.output_dir / "embeddings" / "my_own" / "rex_00002" / "0001-rex.safetensors").exists()
