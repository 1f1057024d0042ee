"""The nodes that take care of a library, in a real ComfyUI; and that no name sent to it leads out of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqlora.library.store import Library
from seqlora.library.verify import verify
from tests.support.hosts import HostServer, PromptRefusedError, error_message
from tests.support.small import SmallModel, contents, small_library

pytestmark = [pytest.mark.host, pytest.mark.slow]

ATTACKS = [
    "../x",
    "/tmp/x",
    "\\\\host\\x",
    "C:\\x",
    "a\x00b",
    "con",
    "LPT1.txt",
    "..",
    "\uff0e\uff0e",
    "a\u2215b",
    ".x",
    "\u202ex",
]


@pytest.fixture
def library(server: HostServer, tmp_path: Path) -> Library:
    return small_library(server.models_dir / "seqlora" / tmp_path.name, SmallModel())


def loading(library: Library) -> dict[str, dict]:
    return {"load": {"class_type": "SeqLoRA_LoadLibrary", "inputs": {"name": library.path.name}}}


def verifying(library: Library, source: str = "load") -> dict[str, dict]:
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["verify", 1]}}
    return loading(library) | {
        "verify": {"class_type": "SeqLoRA_VerifyLibrary", "inputs": {"library": [source, 0]}},
        "count": shown,
    }


def removing(library: Library, concept: str) -> dict[str, dict]:
    return loading(library) | {
        "remove": {"class_type": "SeqLoRA_RemoveConcept", "inputs": {"library": ["load", 0], "concept_name": concept}}
    }


def refusal(server: HostServer, prompt: dict[str, dict]) -> str:
    """What the host says of a prompt that must not run."""
    try:
        return error_message(server.wait(server.post_prompt(prompt)))
    except PromptRefusedError as error:
        return str(error)


@pytest.mark.parametrize("node", ["SeqLoRA_RemoveConcept", "SeqLoRA_VerifyLibrary"])
def test_every_input_and_output_is_explained(server: HostServer, node: str):
    info = server.get(f"/object_info/{node}")[node]
    assert info["category"] == "SeqLoRA/library" and info["description"] and info["search_aliases"] and info["output_node"]
    assert all(options["tooltip"] for _, options in info["input"]["required"].values()) and all(info["output_tooltips"])


def test_removing_and_verifying(server: HostServer, library: Library):
    outputs = server.run(verifying(library))
    assert outputs["count"]["text"] == ["0"]
    assert outputs["verify"]["text"] == [f"{library.path.name}: all files are as they should be"]

    (library.path / "moments" / "0001.safetensors").unlink()  # the manifest stays as it is
    outputs = server.run(verifying(library))
    assert outputs["count"]["text"] == ["1"] and "0001.safetensors cannot be read" in outputs["verify"]["text"][0]

    outputs = server.run(removing(library, " cat ") | verifying(library, "remove"))
    assert outputs["remove"]["text"] == [f"removed cat\nlibrary {library.path.name}: dog"] and outputs["count"]["text"] == ["0"]
    assert Library.open(library.path).names == ["dog"] and verify(library.path) == []
    (again,) = server.run(removing(library, "cat"))["remove"]["text"]
    assert again == f"there is no concept 'cat' (any more); nothing was removed\nlibrary {library.path.name}: dog"


@pytest.mark.parametrize("said", ["Cat", "CAT ", "\uff43\uff41\uff54"])
def test_what_is_removed_is_what_a_file_system_takes_for_its_name(server: HostServer, library: Library, said: str):
    assert server.run(removing(library, said))["remove"]["text"] == [f"removed cat\nlibrary {library.path.name}: dog"]


def test_a_writer_is_not_disturbed(server: HostServer, library: Library):
    with library.writing():
        assert "A training is writing to library" in refusal(server, removing(library, "cat"))
    assert Library.open(library.path) == library


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_name_leads_out(server: HostServer, library: Library, attack: str):
    before = contents(server.models_dir)
    create = {"name": attack, "rank": 4, "capacity": 8, "targets": "attention"}
    prompt = {"create": {"class_type": "SeqLoRA_CreateLibrary", "inputs": create}}
    prompt["verify"] = {"class_type": "SeqLoRA_VerifyLibrary", "inputs": {"library": ["create", 0]}}
    assert "The library name " in refusal(server, prompt)
    prompt = verifying(library)
    prompt["load"]["inputs"]["name"] = attack
    assert "There is no library" in refusal(server, prompt)
    assert "nothing was removed" in server.run(removing(library, attack))["remove"]["text"][0]
    assert contents(server.models_dir) == before
