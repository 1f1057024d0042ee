"""Watching a training in a real ComfyUI: its events, its state, its previews, and that none of it changes what is taught."""

from __future__ import annotations

import io
import itertools
import threading
from urllib.parse import urlencode

import pytest
import torch
from PIL import Image

from seqlora.library.store import Library
from tests.support.events import Heard, listening
from tests.support.hosts import HostServer, error_message, run_in_host
from tests.support.prompts import cancel_at, teaching, trainings, wait_for_step

pytestmark = [pytest.mark.host, pytest.mark.slow]
EVENT = "seqlora.training"
FAST = {"method": "lora", "batch_size": 2}
STATE = [
    "id",
    "node",
    "workflow",
    "library",
    "concept",
    "subject",
    "phase",
    "step",
    "steps",
    "loss",
    "rate",
    "left",
    "keep",
    "reused",
]
STATE += ["note", "verdict", "preview_seconds", "losses", "figures", "previews"]
HISTORIES = ("losses", "figures", "previews")


# --- Without a server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long(host: object) -> dict:
    """What tests/comfyui/hostscripts/watching.py reports of 20000 steps that take no time."""
    return run_in_host("watching.py", timeout=120)


def test_a_state_is_always_of_one_moment(long: dict):
    assert long["answers"] > 10 and long["all_whole"]


def test_long_curves_are_thinned_to_means(long: dict):
    assert long["points"] <= 500 and long["last"] == 20000 and long["mean_error"] <= 1e-3


def test_events_are_few_and_together_tell_every_step(long: dict):
    assert long["events"] <= long["allowed"] and long["news"] == 20000
    assert long["phases"] == ["starting", "finished"]


def test_how_a_training_ended_is_told_and_remembered(long: dict):
    assert long["ends"] == {
        "2": ["finished", "", "finished"],
        "3": ["failed", "The disk is full.", "failed"],
        "4": ["failed", "ValueError: odd", "failed"],
        "5": ["cancelled", "", "cancelled"],
    }
    assert long["remembered"] <= 51 and long["newest"] == "many 99" and long["same_node"]


@pytest.fixture(scope="module")
def previews(host: object, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What hostscripts/previews.py reports. The demo model's turn comes below, that of others in a run by hand."""
    return run_in_host("previews.py", "flux", tmp_path_factory.mktemp("flux"), timeout=600)


def test_previews_change_nothing_that_is_taught(previews: dict):
    assert previews["same"] and previews["state_kept"] and previews["kept"]


def test_previews_show_what_is_drawn_with_all_concepts_applied(previews: dict):
    assert previews["steps"] == [2, 4]
    assert previews["pictures"] == [
        ["new", "a red zobikunew thing", 0],
        ["earlier", "a photo of zobikuearlier thing", 0],
    ]
    assert max(previews["in_use"]) <= 1e-5 < 1e-3 < previews["without"]
    told = previews["told"]
    assert told["preview_seconds"] == pytest.approx(previews["seconds"], abs=0.01)
    assert (told["node"], told["workflow"], told["phase"]) == ("12:5", "w", "finished")
    assert told["note"].startswith("learning_rate is 0.01") and "could not be drawn" not in told["note"]


def test_a_preview_that_fails_is_a_note(previews: dict):
    phase, note, shown, same = previews["noted"]
    assert (phase, shown, same) == ("finished", [], True)
    assert note.startswith("The preview could not be drawn (list index out of range); the training goes on without.")


def test_a_cancel_during_a_preview_cancels(previews: dict):
    assert previews["cancelled"] == ["cancelled", 4, 1] and previews["left"] == ["earlier"]
    note, same = previews["resumed"]
    assert note.startswith("Goes on from step 4.") and same


# --- Through the server -------------------------------------------------------------------------------------------------


def events(heard: Heard, node: str) -> list[tuple[float, dict]]:
    return [(seconds, state) for seconds, state in heard.events.get(EVENT, []) if state["node"] == node]


def state_of(server: HostServer, node: str) -> dict:
    (state,) = [training for training in trainings(server) if training["node"] == node]
    return state


def test_a_training_from_start_to_end(server: HostServer):
    prompt = teaching("seen", steps=30, preview_every=20, preview_prompt="a photo of a cat", **FAST)
    prompt["7:3"] = prompt.pop("train")
    body = {"prompt": prompt, "client_id": server.client_id, "extra_data": {"extra_pnginfo": {"workflow": {"id": "w-1"}}}}
    with listening(server) as heard:
        queued = server.post("/prompt", body)["prompt_id"]
        assert server.wait(queued)["status"]["status_str"] == "success"
        heard.until(lambda: any(state["phase"] == "finished" for _, state in events(heard, "7:3")), "its end")
    told = events(heard, "7:3")
    states = [state for _, state in told]
    assert all(sorted(state) == sorted(STATE) for state in states)
    assert [phase for phase, _ in itertools.groupby(state["phase"] for state in states)] == [
        "starting",
        "measuring",
        "training",
        "saving",
        "finished",
    ]
    for (before, one), (after, other) in itertools.pairwise(told):
        assert after - before > 0.15 or one["phase"] != other["phase"]
    assert heard.data("seqlora.library") == [{"name": "seen"}] * 2  # created, and taught
    whole = state_of(server, "7:3")
    assert (whole["workflow"], whole["library"], whole["concept"], whole["phase"]) == ("w-1", "seen", "first", "finished")
    for history in HISTORIES:
        assert whole[history] == [entry for state in states for entry in state[history]], history
    assert [step for step, _ in whole["losses"]] == list(range(1, 31)) and whole["loss"] == whole["losses"][-1][1]
    assert whole["figures"][0]["step"] == 1 and all(figures["orthogonality"] >= 0 for figures in whole["figures"])
    assert {figures["crosstalk"] for figures in whole["figures"]} == {None}
    assert [preview["step"] for preview in whole["previews"]] == [20, 30]
    assert whole["preview_seconds"] == pytest.approx(sum(preview["seconds"] for preview in whole["previews"]), abs=0.01)
    (picture,) = whole["previews"][-1]["pictures"]  # there is no earlier concept
    assert (picture["concept"], picture["prompt"], picture["seed"]) == ("first", "a photo of a cat", 0)
    assert picture["image"]["subfolder"] == "seqlora" and picture["image"]["type"] == "temp"
    with Image.open(io.BytesIO(server.get(f"/view?{urlencode(picture['image'])}"))) as image:
        assert image.size == (64, 64)


def test_without_previews_the_same_is_taught(server: HostServer):
    taught = []
    for library, every in (("with", 2), ("without", 0)):
        server.run(teaching(library, steps=6, preview_every=every, **FAST))
        assert len(state_of(server, "train")["previews"]) == (3 if every else 0)
        now = Library.open(server.models_dir / "seqlora" / library)
        taught.append(now.load("first"))
    one, other = taught
    assert all(torch.equal(a, b) for layer in one for a, b in zip(one[layer], other[layer], strict=True))


def test_what_was_found_again_shows_its_curve(server: HostServer):
    prompt = teaching("again", steps=8, preview_every=0, **FAST)
    server.run(prompt)
    first = state_of(server, "train")
    server.run(prompt | {"again": prompt["train"] | {"inputs": prompt["train"]["inputs"] | {"library": ["train", 0]}}})
    found = state_of(server, "again")
    assert found["phase"] == "finished" and "taught before" in found["note"] and found["previews"] == []
    assert [step for step, _ in found["losses"]] == [step for step, _ in first["losses"]] and found["step"] == 8
    assert found["losses"] == [[step, pytest.approx(loss, abs=1e-4)] for step, loss in first["losses"]]


def test_what_fails_says_why(server: HostServer):
    queued = server.post_prompt(teaching("failing", trigger=""))
    assert error_message(server.wait(queued)).endswith(state_of(server, "train")["note"])
    assert state_of(server, "train")["phase"] == "failed" and "The trigger is empty" in state_of(server, "train")["note"]


def test_what_is_cancelled_says_so(server: HostServer):
    cancel_at(server, teaching("stopped", steps=5000, **FAST), 2)
    state = state_of(server, "train")
    assert state["phase"] == "cancelled" and state["step"] >= 2 and len(state["losses"]) == state["step"]


def test_many_who_ask_get_whole_states_and_disturb_nothing(server: HostServer):
    queued = server.post_prompt(teaching("asked", steps=100000, preview_every=0, **FAST))
    wait_for_step(server, 2)
    wrong, stop = [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            state = state_of(server, "train")
            if state["phase"] == "training" and state["losses"][-1][0] != state["step"]:
                wrong.append(state)

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    state = wait_for_step(server, 30)
    server.post("/seqlora/train/train/keep", {})
    assert server.wait(queued)["status"]["status_str"] == "success"
    stop.set()
    for thread in asking:
        thread.join()
    assert (
        wrong == [] and state["rate"] > 0 and state["left"] == pytest.approx((100000 - state["step"]) / state["rate"], abs=0.1)
    )
    assert state_of(server, "train")["keep"]


def test_two_nodes_are_told_apart(server: HostServer):
    prompt = teaching("chain", steps=4, preview_every=0, **FAST)
    second = {name: value for name, value in prompt["train"]["inputs"].items() if name != "options"}
    second |= {"library": ["train", 0], "concept_name": "second", "seed": 1, "preview_every": 3}
    prompt["second"] = {"class_type": "SeqLoRA_TrainConcept", "inputs": second}
    server.run(prompt)
    first, second = state_of(server, "train"), state_of(server, "second")
    assert first["concept"] == "first" and second["concept"] == "second" and first["id"] != second["id"]
    assert all(figures["crosstalk"] > 0 and figures["orthogonality"] < 1e-4 for figures in second["figures"])
    assert [picture["concept"] for picture in second["previews"][0]["pictures"]] == ["second", "first"]
