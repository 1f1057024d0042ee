"""Workflows in the host's API format that several tests queue, and what they do with them."""

from __future__ import annotations

import time
from typing import Any

from safetensors.torch import load_file

from seqlora.demo.pictures import held_out_emoji
from seqlora.settings import OPTIONS
from tests.support.hosts import HostServer


def teaching(library: str, steps: int = 20, concept: str = "first", **changes) -> dict[str, dict]:
    """One training; what the node itself does not take is given to a node of options."""
    emoji = held_out_emoji()[0].name
    options = {name: changes.pop(name) for name in list(changes) if name in OPTIONS and OPTIONS[name].advanced}
    linked = {"options": ["options", 0]} if options else {}
    return ({"options": {"class_type": "SeqLoRA_TrainingOptions", "inputs": options}} if options else {}) | {
        "model": {"class_type": "SeqLoRA_DemoModel", "inputs": {}},
        "pictures": {"class_type": "SeqLoRA_DemoPictures", "inputs": {"concept": emoji, "count": 4, "seed": 0}},
        "library": {
            "class_type": "SeqLoRA_CreateLibrary",
            "inputs": {"name": library, "rank": 4, "capacity": 8, "targets": "attention"},
        },
        "train": {
            "class_type": "SeqLoRA_TrainConcept",
            "inputs": {
                "model": ["model", 0],
                "clip": ["model", 1],
                "vae": ["model", 2],
                "library": ["library", 0],
                "images": ["pictures", 0],
                "captions": ["pictures", 1],
                "concept_name": concept,
                "trigger": ["pictures", 2],
                "class_word": ["pictures", 3],
                "steps": steps,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "seed": 0,
            }
            | linked
            | changes,
        },
    }


def drawing(model: list, prefix: str) -> dict[str, dict]:
    return {
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"text": "a photo of a cat", "clip": ["apply", 1]}},
        "empty": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["apply", 1]}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        f"sample {prefix}": {
            "class_type": "KSampler",
            "inputs": {
                "model": model,
                "positive": ["prompt", 0],
                "negative": ["empty", 0],
                "latent_image": ["latent", 0],
                "seed": 1,
                "steps": 4,
                "cfg": 3.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        f"decode {prefix}": {"class_type": "VAEDecode", "inputs": {"samples": [f"sample {prefix}", 0], "vae": ["model", 2]}},
        f"save {prefix}": {
            "class_type": "SaveImage",
            "inputs": {"images": [f"decode {prefix}", 0], "filename_prefix": prefix},
        },
    }


def draw(server: HostServer, number: int) -> bytes:
    """The bits that the bare demo model draws, with the MODEL that the host keeps. Another number makes it draw anew."""
    graph = {"apply": {"class_type": "SeqLoRA_DemoModel", "inputs": {}}} | drawing(["apply", 0], "bare")
    graph = {name: node for name, node in graph.items() if not name.startswith(("decode", "save"))}
    zeros = {"class_type": "LatentMultiply", "inputs": {"samples": ["latent", 0], "multiplier": 1.0 + number / 100}}
    graph["sample bare"]["inputs"]["latent_image"] = ["zeros", 0]
    save = {"class_type": "SaveLatent", "inputs": {"samples": ["sample bare", 0], "filename_prefix": "bare"}}
    entry = server.wait(server.post_prompt(graph | {"zeros": zeros, "save": save}))
    cached = [node for kind, details in entry["status"]["messages"] if kind == "execution_cached" for node in details["nodes"]]
    assert "sample bare" not in cached and ("apply" in cached or number == 0)
    (file,) = entry["outputs"]["save"]["latents"]
    return load_file(server.output_dir / file["subfolder"] / file["filename"])["latent_tensor"].numpy().tobytes()


def wait_for_step(server: HostServer, step: int) -> dict[str, Any]:
    """What the server tells of the one training that runs, as soon as it has come this far."""
    end, now = time.monotonic() + 300, []
    while not now or now[0]["step"] < step:
        assert time.monotonic() < end, server.log_tail()
        time.sleep(0.02)
        now = [training for training in trainings(server) if training["phase"] == "training"]
    return now[0]


def trainings(server: HostServer) -> list[dict[str, Any]]:
    return server.get("/seqlora/training")["trainings"]


def cancel_at(server: HostServer, prompt: dict[str, dict], step: int) -> int:
    """Queues a training and cancels it when it has come this far; the step that was seen last."""
    queued = server.post_prompt(prompt)
    seen = wait_for_step(server, step)
    server.interrupt()
    entry = server.wait(queued, 120)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]], entry["status"]
    return seen["step"]
