"""Cancelling, going on and keeping through a real ComfyUI's server."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request

import pytest

from seqlora.library.store import Library
from tests.support.hosts import HostServer
from tests.support.prompts import cancel_at, draw, teaching, trainings, wait_for_step

pytestmark = [pytest.mark.host, pytest.mark.slow]
FAST = {"method": "lora", "batch_size": 2}  # nothing need be measured on generic captions


def test_cancelled_at_random_steps_and_queued_once_more(server: HostServer):
    """Each time it goes on where it was; the user's model draws the same picture throughout."""
    prompt = teaching("resumed", steps=40, **FAST)
    library = server.models_dir / "seqlora" / "resumed"
    bare, reached, rng = draw(server, 0), 0, random.Random(0)
    for number in range(1, 4):
        reached = cancel_at(server, prompt, reached + rng.randint(1, 8))
        assert Library.open(library).names == [] and len(list((library / "checkpoints").iterdir())) == 1
        assert draw(server, number) == bare
    report = {"class_type": "PreviewAny", "inputs": {"source": ["train", 2]}}
    outputs = server.run(prompt | {"report": report})
    figures = json.loads(outputs["report"]["text"][0])
    assert figures["resumed_at"] >= reached and figures["steps"] == 40 and "ended_early_at" not in figures
    assert Library.open(library).names == ["first"] and not (library / "checkpoints").exists()
    assert draw(server, 9) == bare


def test_keep_ends_a_training_inside_a_subgraph(server: HostServer):
    prompt = teaching("kept", steps=100000, **FAST)
    prompt["12:5"] = prompt.pop("train")  # the id that the editor gives a node inside a subgraph
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": ["12:5", 2]}}
    queued = server.post_prompt(prompt)
    training = wait_for_step(server, 2)
    assert training["node"] == "12:5" and training["library"] == "kept" and training["concept"] == "first"
    assert training["steps"] == 100000 and training["loss"] > 0
    assert refused(server, "/api/seqlora/train/12/keep") == (404, "No training runs on node '12'; it may have ended.")
    assert server.post("/seqlora/train/12:5/keep", {})["keep"] is True
    outputs = server.wait(queued)["outputs"]
    figures = json.loads(outputs["report"]["text"][0])
    assert training["step"] <= figures["ended_early_at"] == figures["steps"] < 100000
    assert f"ended early, at step {figures['steps']} of 100000" in outputs["12:5"]["text"][0]
    assert Library.open(server.models_dir / "seqlora" / "kept").names == ["first"]
    (ended,) = [training for training in trainings(server) if training["node"] == "12:5"]
    assert ended["phase"] == "finished" and ended["keep"] and ended["step"] == figures["steps"]
    again = json.loads(server.run(prompt)["report"]["text"][0])
    assert again["reused"] and again["ended_early_at"] == figures["ended_early_at"]


def test_other_sites_cannot_ask(server: HostServer):
    """The host's middleware stands before these routes as before its own."""
    for path in ("/seqlora/train/1/keep", "/api/seqlora/train/1/keep"):
        assert refused(server, path)[0] == 404
        assert refused(server, path, Origin="http://elsewhere.example")[0] == 403
        assert refused(server, path, **{"Sec-Fetch-Site": "cross-site"})[0] == 403


@pytest.mark.parametrize("node", ["..%2F..%2Fetc", "%00", "a" * 5000, "%3Cscript%3E", "12:5"])
def test_a_node_that_is_none_is_answered_in_a_sentence(server: HostServer, node: str):
    status, sentence = refused(server, f"/seqlora/train/{node}/keep")
    assert status == 404 and sentence.startswith("No training runs on node ") and sentence.endswith(".")


def refused(server: HostServer, path: str, **headers: str) -> tuple[int, str]:
    """Status and sentence of the answer to a POST that must not succeed."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            raise AssertionError(f"{path} answered {response.status}")
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text)["error"] if text.startswith("{") else text
