"""The demo model in a real ComfyUI: the same numbers as in diffusers, and pictures through the server."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from seqlora.demo.micro import WEIGHTS, load_micro, velocity
from seqlora.demo.pictures import concept_pictures, held_out_emoji
from tests.support.hosts import HostServer, PromptRefusedError, error_message, run_in_host

pytestmark = pytest.mark.host
PROMPTS = ["a red cat", "a photo of a zobiku on a blue background", ""]


@pytest.fixture(scope="module")
def in_host(host: object, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the host makes of inputs whose outputs are known from the core and diffusers."""
    model = load_micro()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(PROMPTS), 16, 16, 16, generator=generator)
    sigmas = torch.tensor([1.0, 0.5, 0.03])
    pictures = torch.rand(2, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        context = model.encode_text(PROMPTS)
        encoded = model.vae.encode(pictures * 2 - 1)
        data = {
            "latents": latents,
            "sigmas": sigmas,
            "context": context,
            "velocity": velocity(model.unet, latents, sigmas * 1000, context),
            "pictures": pictures.movedim(1, -1),
            "encoded": encoded,
            "decoded": ((model.vae.decode(encoded) + 1) / 2).movedim(1, -1),
        }
    path = tmp_path_factory.mktemp("demo") / "data.safetensors"
    save_file({name: value.contiguous() for name, value in data.items()}, path)
    return run_in_host("demo_model.py", WEIGHTS, path, json.dumps(PROMPTS))


@pytest.mark.parametrize("part", ["unet", "text", "encode", "decode"])
def test_same_numbers_as_in_diffusers(in_host: dict, part: str):
    assert in_host[part] <= 1e-5


def test_parentheses_in_a_caption_set_no_weights(in_host: dict):
    assert max(in_host["literal_captions"]) <= 1e-5


def test_timesteps_are_sigmas_times_1000(in_host: dict):
    assert in_host["timestep"] == 500


def test_weights_are_renamed_as_the_host_renames_them(in_host: dict):
    assert in_host["renaming_differences"] == []


def test_sizes_that_are_no_multiple_of_4_are_cropped(in_host: dict):
    assert in_host["odd_shape"] == [1, 16, 16, 17]


def test_tiles_agree_with_the_whole_picture(in_host: dict):
    assert in_host["tiled_encode"] <= 1e-5
    assert in_host["tiled_decode"] <= 1e-5


def test_previews_are_the_mean_colours_of_the_picture(in_host: dict):
    assert in_host["preview"] <= 0.02


def test_emphasis_scales_a_word_against_the_empty_prompt(in_host: dict):
    assert in_host["emphasis"]["weight_one"] == 0
    assert in_host["emphasis"]["weight_one_and_a_half"] <= 1e-5


def test_host_can_copy_and_save_the_model(in_host: dict):
    assert in_host["deep_copy"] == "UNetModel"
    assert in_host["clip_saves"] > 0 and in_host["vae_saves"] == 3


def test_other_weights_are_loaded_anew(in_host: dict):
    now, again, other = in_host["fingerprints"]
    assert now == again != other


def text_to_image(prompt: str, latent: str = "EmptyLatentImage", steps: int = 25) -> dict[str, dict]:
    return {
        "model": {"class_type": "SeqLoRA_DemoModel", "inputs": {}},
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": prompt}},
        "empty": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": ""}},
        "latent": {"class_type": latent, "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "positive": ["prompt", 0],
                "negative": ["empty", 0],
                "latent_image": ["latent", 0],
                "seed": 1,
                "steps": steps,
                "cfg": 3.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "demo"}},
    }


def pictures_of(server: HostServer, output: dict) -> list[np.ndarray]:
    """The saved pictures of a node's output, as (height, width, 3) in 0..255."""
    paths = [server.output_dir / image["subfolder"] / image["filename"] for image in output["images"]]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


@pytest.mark.parametrize("latent", ["EmptyLatentImage", "EmptySD3LatentImage"])
def test_text_to_image_through_the_server(server: HostServer, latent: str):
    outputs = server.run(text_to_image("a photo of a cat on a red background", latent))
    (picture,) = pictures_of(server, outputs["save"])
    assert picture.shape == (64, 64, 3)
    red, green, blue = picture[:4].reshape(-1, 3).mean(0)
    assert red > green + 60 and red > blue + 60


def test_demo_pictures_are_the_ones_of_the_core(server: HostServer):
    emoji = held_out_emoji()[3]
    outputs = server.run(
        {
            "pictures": {"class_type": "SeqLoRA_DemoPictures", "inputs": {"concept": emoji.name, "count": 5, "seed": 7}},
            "save": {"class_type": "SaveImage", "inputs": {"images": ["pictures", 0], "filename_prefix": "concept"}},
            "captions": {"class_type": "PreviewAny", "inputs": {"source": ["pictures", 1]}},
            "trigger": {"class_type": "PreviewAny", "inputs": {"source": ["pictures", 2]}},
            "class": {"class_type": "PreviewAny", "inputs": {"source": ["pictures", 3]}},
        }
    )
    expected, backgrounds = concept_pictures(emoji, 5, 7)
    pictures = np.stack(pictures_of(server, outputs["save"]))
    assert np.abs(pictures - ((expected + 1) * 127.5).movedim(1, -1).numpy()).max() <= 1
    assert outputs["captions"]["text"] == [f"a photo of {emoji.class_word} on a {b} background" for b in backgrounds]
    assert outputs["trigger"]["text"][0].isalpha() and outputs["class"]["text"] == [emoji.class_word]


def test_every_demo_input_and_output_is_explained(server: HostServer):
    for node in ("SeqLoRA_DemoModel", "SeqLoRA_DemoPictures"):
        info = server.get(f"/object_info/{node}")[node]
        assert info["category"] == "SeqLoRA/demo" and info["description"]
        inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
        assert all(options["tooltip"] for _, options in inputs.values())
        assert all(info["output_tooltips"])


def test_the_server_reports_what_goes_wrong(server: HostServer):
    workflow = {
        "model": {"class_type": "SeqLoRA_DemoModel", "inputs": {}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 0}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["latent", 0], "vae": ["model", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "wrong"}},
    }
    with pytest.raises(PromptRefusedError, match="value_smaller_than_min"):
        server.post_prompt(workflow)
    workflow["latent"]["inputs"]["batch_size"] = 1  # valid, but 4 channels cannot be decoded
    entry = server.wait(server.post_prompt(workflow))
    assert entry["status"]["status_str"] == "error"
    assert "RuntimeError" in error_message(entry)
