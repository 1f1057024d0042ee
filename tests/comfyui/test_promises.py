"""A graph that was run ends as it says, whatever happened to its library since: with the host's cache on, what is gone is
never reported as done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from seqlora.library.store import Library
from tests.support.hosts import HostServer, error_message
from tests.support.prompts import teaching

pytestmark = pytest.mark.host
# Nothing of the base model is measured, so that a run takes no time.
QUICK = {"steps": 1, "batch_size": 1, "method": "lora", "preview_every": 0}


def graph(library: str) -> dict[str, dict]:
    """Two concepts, taught one after the other, and applied."""
    prompt = teaching(library, concept="first", **QUICK)
    second = teaching(library, concept="second", **QUICK)["train"]
    second["inputs"] |= {"library": ["train", 0], "seed": 1}
    apply = {"model": ["model", 0], "library": ["second", 0], "concepts": "*", "strength": 1.0}
    return prompt | {
        "second": second,
        "apply": {"class_type": "SeqLoRA_ApplyComposed", "inputs": apply},
        "triggers": {"class_type": "PreviewAny", "inputs": {"source": ["apply", 2]}},
    }


class Workbench:
    """One library in a running host, and what can happen to it behind the graph's back."""

    def __init__(self, server: HostServer, name: str):
        self.server, self.name = server, name
        self.path = server.models_dir / "seqlora" / name
        self.copy = server.base / f"copy of {name}"

    def remove(self) -> None:
        self._ask("second", "remove", {})

    def add_another_way(self) -> None:
        """Taught by another graph, with other settings, after it was removed."""
        self.remove()
        other = graph(self.name)
        other["second"]["inputs"]["seed"] = 2
        self.server.run(other)

    def rename(self) -> None:
        self._ask("second", "rename", {"to": f"once second {len(Library.open(self.path).names)}"})

    def delete(self) -> None:
        shutil.rmtree(self.path)

    def restore(self) -> None:
        """A copy from when there was only the first, with its old times."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.copy, self.path)

    def run(self) -> None:
        """The graph's promise, or a sentence why not."""
        entry = self.server.wait(self.server.post_prompt(graph(self.name)))
        names = Library.open(self.path).names
        if entry["status"]["status_str"] == "success":
            assert {"first", "second"} <= set(names)
            (told,) = entry["outputs"]["triggers"]["text"]
            assert [line.partition(":")[0] for line in told.splitlines()] == names
        else:
            assert "has a concept 'second' already" in error_message(entry)

    def _ask(self, concept: str, action: str, body: dict) -> None:
        if concept in Library.open(self.path).names:
            self.server.post(f"/seqlora/libraries/{self.name}/concepts/{concept}/{action}", body)


ACTIONS: dict[str, Callable[[Workbench], None]] = {
    "remove": Workbench.remove,
    "add": Workbench.add_another_way,
    "rename": Workbench.rename,
    "delete": Workbench.delete,
    "restore": Workbench.restore,
}
SEQUENCES = list(product(ACTIONS, repeat=3))
SOME = SEQUENCES[::62]  # the others take minutes


@pytest.fixture(scope="module")
def copied(server: HostServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the first concept only."""
    name = tmp_path_factory.mktemp("promise").name
    server.run({key: node for key, node in graph(name).items() if key not in ("second", "apply", "triggers")} | shown())
    return server.models_dir / "seqlora" / name


def shown() -> dict[str, dict]:
    return {"shown": {"class_type": "PreviewAny", "inputs": {"source": ["train", 2]}}}


@pytest.mark.parametrize(
    "actions", [pytest.param(s, marks=() if s in SOME else pytest.mark.exhaustive, id=" ".join(s)) for s in SEQUENCES]
)
def test_whatever_happens_the_graph_ends_as_it_says(server: HostServer, copied: Path, tmp_path: Path, actions: tuple[str, ...]):
    bench = Workbench(server, tmp_path.name)
    shutil.copytree(copied, bench.copy)
    bench.run()
    for action in actions:
        if not bench.path.exists() and action != "restore":
            continue
        ACTIONS[action](bench)
        bench.run()
    shutil.rmtree(bench.copy)


def test_a_graph_that_removes_and_teaches_can_be_run_twice(server: HostServer, tmp_path: Path):
    prompt = graph(tmp_path.name)
    gone = {"library": ["library", 0], "concept_name": "second"}
    prompt["remove"] = {"class_type": "SeqLoRA_RemoveConcept", "inputs": gone}
    prompt["train"]["inputs"]["library"] = ["remove", 0]
    for _ in range(2):
        server.run(prompt)
        assert Library.open(server.models_dir / "seqlora" / tmp_path.name).names == ["first", "second"]


def test_a_library_named_by_another_node_is_cached_and_no_less_true(server: HostServer, tmp_path: Path):
    prompt = graph(tmp_path.name)
    prompt["name"] = {"class_type": "PrimitiveString", "inputs": {"value": tmp_path.name}}
    prompt["library"]["inputs"]["name"] = ["name", 0]
    bench = Workbench(server, tmp_path.name)
    for _ in range(2):
        server.run(prompt)
    entry = server.wait(server.post_prompt(prompt))
    (cached,) = [details["nodes"] for kind, details in entry["status"]["messages"] if kind == "execution_cached"]
    assert set(cached) == set(prompt) - {"triggers"} or set(cached) == set(prompt)
    assert "normalize" not in server.log_tail(20000)
    bench.remove()
    server.run(prompt)
    assert Library.open(bench.path).names == ["first", "second"]


def exporting(library: str, prefix: str) -> dict[str, dict]:
    inputs = {"library": ["train", 0], "concepts": "*", "filename_prefix": prefix, "format": "comfyui", "dtype": "fp16"}
    return {key: node for key, node in graph(library).items() if key not in ("second", "apply", "triggers")} | {
        "export": {"class_type": "SeqLoRA_ExportLoRA", "inputs": inputs}
    }


def test_an_export_that_was_deleted_is_written_again(server: HostServer, tmp_path: Path):
    prompt = exporting(tmp_path.name, f"{tmp_path.name}/all")
    folder = server.output_dir / "loras" / tmp_path.name
    for _ in range(3):
        server.run(prompt)
    first, second = sorted(folder.glob("all_*.safetensors"))  # the library had no concept before the first
    second.unlink()
    server.run(prompt)
    assert len(list(folder.glob("all_*.safetensors"))) == 2


@pytest.mark.parametrize("prefix", ["", "a:b", "a\nb", "a\\b", "con", "../x", "a/../b", "/tmp/x", "x/", " "])
def test_an_export_goes_to_a_plain_name(server: HostServer, copied: Path, prefix: str):
    prompt = exporting(copied.name, prefix)
    before = sorted(server.output_dir.rglob("*"))
    assert "filename_prefix" in error_message(server.wait(server.post_prompt(prompt)))
    assert sorted(server.output_dir.rglob("*")) == before


def test_a_strength_that_is_no_number_is_refused(server: HostServer, copied: Path):
    prompt = graph(copied.name)
    prompt["strength"] = {"class_type": "PrimitiveFloat", "inputs": {"value": float("nan")}}
    prompt["apply"]["inputs"]["strength"] = ["strength", 0]
    assert "strength is" in error_message(server.wait(server.post_prompt(prompt)))


@pytest.mark.parametrize(
    "part,between",
    [
        ("sampling", {"class_type": "ModelSamplingSD3", "inputs": {"model": ["model", 0], "shift": 5.0}}),
        ("text encoder", {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["model", 1], "stop_at_clip_layer": -2}}),
    ],
)
def test_another_part_of_the_model_makes_another_request(server: HostServer, tmp_path: Path, part: str, between: dict):
    prompt = {key: node for key, node in graph(tmp_path.name).items() if key not in ("second", "apply", "triggers")}
    server.run(prompt | shown())
    prompt["between"] = between
    prompt["train"]["inputs"]["model" if part == "sampling" else "clip"] = ["between", 0]
    told = error_message(server.wait(server.post_prompt(prompt | shown())))
    assert f"has a concept 'first' already, taught with another {part}; choose another name" in told
