"""Adopt LoRA in a real ComfyUI: files of other makers from models/loras, and the user's model as it was."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seqlora.demo.demo_model import DemoModel
from seqlora.demo.pictures import held_out_emoji, trigger_word
from seqlora.demo.run_demo import PLAIN_SETTINGS, request_of
from seqlora.library.export import export_composed
from seqlora.library.store import Library
from seqlora.library.verify import verify
from seqlora.settings import method_settings
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.hosts import HostServer, error_message
from tests.support.prompts import draw

pytestmark = [pytest.mark.host, pytest.mark.slow]
EMOJI = held_out_emoji()[3]


def adopting(library: str, lora: str, **changes) -> dict[str, dict]:
    model = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2]}
    words = {"concept_name": lora, "trigger": trigger_word(EMOJI), "class_word": EMOJI.class_word}
    create = {"name": library, "rank": 4, "capacity": 8, "targets": "attention and mlp"}
    return {
        "model": {"class_type": "SeqLoRA_DemoModel", "inputs": {}},
        "library": {"class_type": "SeqLoRA_CreateLibrary", "inputs": create},
        "adopt": {
            "class_type": "SeqLoRA_AdoptLoRA",
            "inputs": {**model, "library": ["library", 0], "lora": f"{lora}.safetensors", **words, "fast": True, **changes},
        },
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["adopt", 1]}},
    }


def report(outputs: dict[str, dict]) -> dict:
    return json.loads(outputs["report"]["text"][0])


@pytest.fixture(scope="module")
def loras(server: HostServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One taught without a library, its change as a LoHa, one of another model, one that is damaged."""
    folder, model = tmp_path_factory.mktemp("plain"), DemoModel()
    place = server.models_dir / "loras"
    library = Library.create(folder / "alone", 8, 1, "attention and mlp")
    settings = method_settings("lora", PLAIN_SETTINGS.with_(steps=20, batch_size=4))
    taught = run_to_end(train_steps(library, request_of(EMOJI), settings, model)).library
    export_composed(taught, {EMOJI.name: 1.0}, place / "plain.safetensors", "kohya", "fp32")
    loha = {}
    for name, (up, basis) in taught.load(EMOJI.name).items():
        m, n = len(up), len(basis)
        parts = {
            "w1_a": up,
            "w1_b": basis.T,
            "w2_a": torch.ones(m, up.shape[1]) / up.shape[1],
            "w2_b": torch.ones(up.shape[1], n),
        }
        loha |= {f"{name}.hada_{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(loha, place / "loha.safetensors")
    save_file({"lora_unet_elsewhere.lora_up.weight": torch.ones(2, 2)}, place / "foreign.safetensors")
    (place / "damaged.safetensors").write_bytes(b"PK")
    return place


def test_a_lora_becomes_a_concept_and_the_users_model_stays_as_it_was(server: HostServer, loras: Path):
    bare = draw(server, 0)
    told = report(server.run(adopting("adopted", "plain")))
    assert draw(server, 1) == bare
    assert told["adopted_from"] == "plain.safetensors" and told["concept"] == "plain" and told["kept"] > 0.4
    library = Library.open(server.models_dir / "seqlora" / "adopted")
    assert library.names == ["plain"] and verify(library.path) == [] and library.thumbnail("plain")
    again = report(server.run(adopting("adopted", "plain", class_word=f"{EMOJI.class_word} ")))
    assert again.pop("reused") and again == told


def test_a_loha_is_taken_as_the_change_of_weights_it_makes(server: HostServer, loras: Path):
    plain, loha = (report(server.run(adopting(f"as {kind}", kind))) for kind in ("plain", "loha"))
    assert loha["kept"] == pytest.approx(plain["kept"], abs=0.02)


@pytest.mark.exhaustive
def test_following_it_is_told_step_by_step_and_can_be_cancelled(server: HostServer, loras: Path):
    bare, prompt = draw(server, 2), adopting("followed", "plain", fast=False)
    queued = server.post_prompt(prompt)
    checkpoints = server.models_dir / "seqlora" / "followed" / "checkpoints"
    time.sleep(20)
    server.interrupt()
    server.wait(queued, 120)
    assert draw(server, 3) == bare and not Library.open(checkpoints.parent).names
    told = report(server.run(prompt, timeout=900))
    assert told["kept"] > 0.4 and told["steps"] > 8 and draw(server, 4) == bare


@pytest.mark.parametrize(
    "lora, said",
    [
        ("foreign", "foreign.safetensors changes nothing of this model; choose a LoRA that was made for it"),
        ("damaged", "damaged.safetensors cannot be read"),
    ],
)
def test_a_file_that_cannot_be_adopted_is_one_sentence(server: HostServer, loras: Path, lora: str, said: str):
    entry = server.wait(server.post_prompt(adopting(f"for {lora}", lora)))
    assert said in error_message(entry)
    assert not Library.open(server.models_dir / "seqlora" / f"for {lora}").names
