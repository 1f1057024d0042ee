"""The nodes in a real ComfyUI: teaching, composing and exporting on the host's own model classes, and through its server."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from seqlora.demo.demo_model import DemoModel
from seqlora.demo.pictures import held_out_emoji
from seqlora.demo.run_demo import draw, recognised
from seqlora.library.store import Library
from seqlora.settings import Settings
from tests.support.hosts import HostServer, error_message, run_in_host
from tests.support.prompts import drawing, teaching

pytestmark = [pytest.mark.host, pytest.mark.slow]
FAMILIES = ["sd15", "sd3", "flux"]
# The wide layers of SD1.5 take as long as all else of this file; the demo model, a UNet too, is taught below.
TAUGHT = [pytest.param("sd15", marks=pytest.mark.exhaustive), "sd3", "flux"]
NODES = {
    "SeqLoRA_TrainConcept": ["SEQLORA_LIBRARY", "LOSS_MAP", "STRING"],
    "SeqLoRA_CreateLibrary": ["SEQLORA_LIBRARY"],
    "SeqLoRA_LoadLibrary": ["SEQLORA_LIBRARY", "STRING"],
    "SeqLoRA_AdoptLoRA": ["SEQLORA_LIBRARY", "STRING"],
    "SeqLoRA_ApplyComposed": ["MODEL", "CLIP", "STRING", "STRING"],
    "SeqLoRA_ExportLoRA": ["STRING"],
}


@pytest.fixture(scope="module")
def trained(host: object, tmp_path_factory: pytest.TempPathFactory):
    """What tests/comfyui/hostscripts/training.py reports, once for each family."""
    return cache(lambda family: run_in_host("training.py", family, tmp_path_factory.mktemp(family), timeout=1200))


@pytest.mark.parametrize("family", TAUGHT)
def test_thirty_steps_lower_the_loss_on_fixed_noise(trained, family: str):
    assert trained(family)["with_concept"] <= 0.7 * trained(family)["bare"]
    assert trained(family)["layout"]["family"] == {"sd15": "unet"}.get(family, family)


@pytest.mark.parametrize("family", TAUGHT)
def test_a_seed_gives_the_same_file(trained, family: str):
    assert trained(family)["reproducible"]


@pytest.mark.parametrize("family", TAUGHT)
def test_training_leaves_the_model_as_it_was(trained, family: str):
    figures = trained(family)
    assert figures["outputs_kept"] and figures["hooks_left"] == 0 and figures["in_training"] is False


@pytest.mark.parametrize("family", TAUGHT)
def test_a_cancelled_training_leaves_model_and_library_as_they_were(trained, family: str):
    figures = trained(family)
    assert figures["cancel_stopped"] and figures["cancel_outputs_kept"] and figures["cancel_new_files"] == []


@pytest.mark.parametrize("family", TAUGHT)
def test_a_cancelled_training_goes_on_bit_for_bit(trained, family: str):
    assert trained(family)["resumed_at"] == 2 and trained(family)["resumed_same"]


@pytest.mark.parametrize("family", TAUGHT)
def test_gradient_checkpointing_changes_nothing_but_memory(trained, family: str):
    assert trained(family)["checkpointed_blocks"] > 0
    assert trained(family)["checkpointing_error"] <= 1e-5


@pytest.mark.parametrize("family", TAUGHT)
def test_the_same_request_is_found_again(trained, family: str):
    assert trained(family)["reused"] and trained(family)["concepts"] == ["thing", "other"]
    assert trained(family)["overlap"] <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_concept_alone_is_what_the_hosts_own_loader_makes_of_its_file(applied, family: str):
    assert applied(family)["changed"] > 1e-4 and applied(family)["both_differ"] > 0.1
    assert applied(family)["against_host"] <= 1e-5


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_applying_is_exact_and_undone_exactly(applied, family: str):
    assert applied(family)["weights_error"] <= 1e-6
    assert applied(family)["outputs_kept"] and applied(family)["weights_kept"] and applied(family)["nothing_selected"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_loads_every_export(applied, family: str):
    assert len(applied(family)["exports"]) == 6
    for kind, error in applied(family)["exports"].items():
        assert error <= (1e-5 if kind.endswith("fp32") else 1e-3), kind
    header = applied(family)["header"]
    assert header["modelspec.trigger_phrase"] == "zobiku thing, zobiku thing" and header["ss_network_dim"] == "8"
    assert [concept["name"] for concept in json.loads(header["seqlora"])["concepts"]] == ["one", "three"]


def test_sdxl_layers_have_names_and_shapes_that_the_host_knows(applied):
    count, misfits = applied("sd3")["sdxl"]
    assert count == 722 and misfits == []  # 70 blocks of 10, and 11 pairs of projections around them


def test_another_fine_tune_than_the_librarys_is_told_and_a_lora_beside_it_is_not(applied):
    remarks, shared = applied("sd3")["remarks"], "one and three have one trigger, 'zobiku': in a prompt it means all of them."
    assert remarks["own"] == remarks["with a LoRA"] == [shared]
    (told,) = (said.removesuffix(shared) for said in remarks["fine-tune"] if said != shared)
    assert told.startswith("Library 'lib' was taught on another model than this one: another fine-tune")


def test_loading_follows_the_library(applied):
    assert applied("sd3")["digest_follows"] and applied("sd3")["triggers"] == "one: zobiku thing\nthree: zobiku thing"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("unknown concept", ["'two'", "one, three"]),
        ("outside", ["filename_prefix", "no plain name"]),
        ("library path", ["../lib", "'/'"]),
        ("tampered handle", ["../lib", "'/'"]),
        ("other rank", ["rank 4, not 8"]),
        ("wrong model", ["no layer diffusion_model.joint_blocks.0"]),
        ("nothing to export", ["No concepts of library 'lib'"]),
    ],
)
def test_refusals_say_what_to_do(applied, what: str, words: list[str]):
    assert all(word in applied("sd3")["refused"][what] for word in words)


@pytest.fixture(scope="module")
def edges(host: object, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run_in_host("edges.py", tmp_path_factory.mktemp("edges"), timeout=600)


@pytest.mark.parametrize("state", ["plain", "half", "eighth", "above"])
def test_models_are_taught_in_the_state_in_which_the_host_has_them(edges: dict, state: str):
    """fp32; fp16, in which gradients would vanish; fp8 weights; a LoRA upstream."""
    assert edges[state]["kept"] and edges[state]["finite"]
    assert edges[state]["learned"] == pytest.approx(edges["plain"]["learned"], rel=0.01)


def test_a_lora_upstream_is_part_of_the_base(edges: dict):
    assert edges["upstream_changed"] > 0.01 and edges["above_kept"]
    assert edges["above"]["fingerprint"] != edges["plain"]["fingerprint"] == edges["half"]["fingerprint"]


def test_captions_of_unequal_length_run_one_by_one(edges: dict):
    assert edges["joined_and_single"] <= 1e-4


def test_sdxl_is_told_the_size_of_the_pictures(edges: dict):
    assert edges["sdxl_size"]


def test_images_of_unequal_size_with_alpha_and_captions(edges: dict):
    assert edges["pictures"] == [[64, 64, 3], [64, 64, 3], [8, 9, 3]]
    assert edges["captions"] == [["a", "b"], [], ["a", ""], [], ["a\nb"]]
    report = json.loads(edges["sizes_report"])
    assert edges["sizes_losses"] == 3 and report["captions_given_the_trigger"] == 2
    assert edges["again_losses"] == 3 and report["settings"]["steps"] == 3 and report["precision"] == "float32"
    assert "nothing was done" in edges["again_text"] and "nothing was done" not in edges["sizes_text"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no text encoder", ["The clip that is connected holds nothing", "load it from elsewhere"]),
        ("wrong VAE", ["4 channels", "takes 16"]),
        ("VAE of video", ["The VAE makes latents of video, but the model takes those of pictures"]),
        ("VAE of other pixels", ["The VAE makes a latent of 16 x 16 pixels, but the model takes 8 x 8; connect the VAE"]),
        ("text of SD on Flux", ["The text encoder's words are 768 wide, but the model takes 4096; connect the text encoder"]),
        ("text of SD on SD3", ["The text encoder's words are 768 wide, but the model takes 4096"]),
        ("text of Flux on SD", ["The text encoder's words are 4096 wide, but the model takes 768"]),
        ("narrow pooled text on Flux", ["The text encoder's pooled text is 512 wide, but the model takes 768"]),
        ("pooled text of Flux on SD3", ["The text encoder's pooled text is 768 wide, but the model takes 2048"]),
        ("text of SD on the demo", ["The text encoder's words are 768 wide, but the model takes 128"]),
        ("caption count", ["2 captions for 4 pictures"]),
        ("taken name", ["a concept 'sizes' already"]),
        ("wrong model", ["belongs to another model (flux)", "double_blocks.0.img_attn.qkv"]),
        ("out of memory", ["not enough memory", "batch_size"]),
    ],
)
def test_what_cannot_be_taught_is_refused(edges: dict, what: str, words: list[str]):
    assert all(word in edges["refused"][what] for word in words)


def test_memory_that_runs_out_on_the_way_loses_nothing(edges: dict):
    said, report = edges["full"]
    assert "lower batch_size (now 2)" in said and said.endswith(
        "; set gradient_checkpointing to on in SeqLoRA Training Options, which needs much less."
    )
    assert "its checkpoint of step 1 stays" in said and "\n" not in said
    assert report["resumed_at"] == 1 and report["steps"] == 3


# --- Through the server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_is_explained(server: HostServer, node: str):
    info = server.get(f"/object_info/{node}")[node]
    assert info["output"] == NODES[node]
    assert info["category"].split("/")[0] == "SeqLoRA" and info["description"] and info["search_aliases"]
    inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
    assert all(options["tooltip"] for _, options in inputs.values())
    assert all(info["output_tooltips"])


def test_the_order_of_inputs_is_frozen(server: HostServer):
    """Saved workflows have the values of widgets by position."""
    nodes = server.get("/object_info")
    order = nodes["SeqLoRA_TrainConcept"]["input_order"]
    assert order["required"] == ["model", "clip", "vae", "library", "images", "concept_name", "trigger", "class_word"]
    assert order["optional"] == ["captions", "steps", "batch_size", "learning_rate", "seed", "preview_every", "options"]
    order = nodes["SeqLoRA_TrainingOptions"]["input_order"]
    assert order["required"] == []
    assert order["optional"] == [
        "method",
        "replace",
        "gradient_checkpointing",
        "checkpoint_minutes",
        "preview_prompt",
        "basis_learning_rate",
        "basis_init",
        "orthogonality",
        "when_full",
        "co_training",
        "schedule",
        "inner_steps",
        "interference_weight",
        "weighting",
        "overlap",
        "trigger_vectors",
        "trigger_learning_rate",
    ]


def test_a_prompt_of_before_is_told_where_its_inputs_went(server: HostServer):
    prompt = teaching("older prompt")
    prompt["train"]["inputs"] |= {"basis_learning_rate": 3e-3, "context": "modular", "interference": 0.0}
    entry = server.wait(server.post_prompt(prompt))
    assert error_message(entry).endswith(
        "Train SeqLoRA Concept no longer takes basis_learning_rate, context, interference; give them to a SeqLoRA Training "
        "Options node and connect that to 'options'."
    )
    assert not (server.models_dir / "seqlora" / "older prompt" / "checkpoints").exists()


def test_a_name_is_taught_anew_when_that_is_asked_for(server: HostServer):
    quick = {"method": "lora", "preview_every": 0}
    server.run(teaching("anew", steps=2, **quick))
    refused = error_message(server.wait(server.post_prompt(teaching("anew", steps=3, **quick))))
    assert "has a concept 'first' already" in refused
    for _ in range(2):  # the second time it is what was asked for
        server.run(teaching("anew", steps=3, replace=True, **quick))
        (record,) = json.loads((server.models_dir / "seqlora" / "anew" / "library.json").read_text())["concepts"]
        assert record["settings"]["steps"] == 3


@pytest.mark.exhaustive  # a training of full length; `seqlora demo` is another, by the same settings
def test_what_nobody_chose_teaches_the_demo_model(server: HostServer):
    prompt = teaching("nobody chose")
    train = prompt["train"]["inputs"]
    for name in ("steps", "batch_size", "learning_rate", "seed"):
        del train[name]
    server.run(prompt, timeout=600)
    library = Library.open(server.models_dir / "seqlora" / "nobody chose")
    (record,) = library.concepts
    usual = Settings().resolved("demo")
    assert (record.settings["steps"], record.settings["batch_size"]) == (usual.steps, usual.batch_size)
    emoji = held_out_emoji()[0]
    drawn = draw(DemoModel(), library.load("first"), [f"a photo of {record.trigger} {record.class_word}"], 8, 0)
    assert float(recognised(drawn, [emoji]).float().mean()) >= 0.5


def picture(server: HostServer, output: dict) -> np.ndarray:
    (image,) = output["images"]
    path = server.output_dir / image["subfolder"] / image["filename"]
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_from_pictures_to_a_picture(server: HostServer):
    """Teach, apply, draw and export in one prompt; the concept's own file in the host's loader draws the same picture."""
    apply = {
        "class_type": "SeqLoRA_ApplyComposed",
        "inputs": {"model": ["model", 0], "clip": ["model", 1], "library": ["train", 0], "concepts": "*", "strength": 1.0},
    }
    export = {
        "class_type": "SeqLoRA_ExportLoRA",
        "inputs": {
            "library": ["train", 0],
            "concepts": "first: 0.5",
            "filename_prefix": "half",
            "format": "diffusers",
            "dtype": "fp32",
        },
    }
    loss = {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 1], "filename_prefix": "loss"}}
    report = {"class_type": "PreviewAny", "inputs": {"source": ["train", 2]}}
    prompt = teaching("whole path") | {"apply": apply, "export": export, "loss": loss, "report": report}
    prompt |= drawing(["apply", 0], "taught") | drawing(["model", 0], "bare")
    outputs = server.run(prompt)

    taught, bare = (picture(server, outputs[f"save {name}"]) for name in ("taught", "bare"))
    assert taught.shape == (64, 64, 3) and np.abs(taught - bare).mean() > 0.5
    figures = json.loads(outputs["report"]["text"][0])
    assert figures["concept"] == "first" and figures["steps"] == 20 and figures["largest_orthonormality_error"] <= 1e-5
    with safe_open(server.output_dir / "loras" / "half_00001.safetensors", "pt") as file:
        assert all(name.startswith("unet.") for name in file.keys())  # noqa: SIM118

    folder = server.models_dir / "seqlora" / "whole path"
    (server.models_dir / "loras").mkdir(exist_ok=True)
    (server.models_dir / "loras" / "first.safetensors").write_bytes((folder / figures["file"]).read_bytes())
    loader = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["model", 0], "lora_name": "first.safetensors", "strength_model": 1.0},
    }
    began = time.monotonic()
    outputs = server.run(prompt | {"loader": loader} | drawing(["loader", 0], "loaded"))
    assert time.monotonic() - began < figures["seconds"] + 60
    assert np.abs(picture(server, outputs["save loaded"]) - taught).max() <= 1
    assert len(json.loads((folder / "library.json").read_text())["concepts"]) == 1  # found again, not taught again


def test_a_cancel_through_the_server_keeps_the_library_as_it_was(server: HostServer):
    prompt = server.post_prompt(teaching("cancelled", steps=5000))
    manifest = server.models_dir / "seqlora" / "cancelled" / "library.json"
    end = time.monotonic() + 120
    while not manifest.exists() and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(2)
    server.interrupt()
    entry = server.wait(prompt, 60)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]
    assert json.loads(manifest.read_text())["concepts"] == []
    assert {path.name for path in manifest.parent.iterdir()} <= {"library.json", ".lock", "checkpoints"}


def test_what_went_wrong_is_one_sentence(server: HostServer):
    prompt = teaching("wrong", trigger="")
    message = error_message(server.wait(server.post_prompt(prompt)))
    assert message.endswith("The trigger is empty; give a made-up word that stands for the concept in prompts.")


def test_libraries_are_listed_by_name(server: HostServer):
    library = {
        "class_type": "SeqLoRA_CreateLibrary",
        "inputs": {"name": "listed", "rank": 4, "capacity": 8, "targets": "attention"},
    }
    server.run({"library": library, "show": {"class_type": "PreviewAny", "inputs": {"source": ["library", 0]}}})
    (options, *_) = server.get("/object_info/SeqLoRA_LoadLibrary")["SeqLoRA_LoadLibrary"]["input"]["required"]["name"]
    names = options if isinstance(options, list) else _[0]["options"]
    assert "listed" in names
    assert (Path(server.models_dir) / "seqlora" / "listed" / "library.json").is_file()
