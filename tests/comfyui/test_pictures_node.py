"""Load Concept Pictures in a real host: the core's reader, by a folder's name."""

from __future__ import annotations

from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image

from seqlora.library.store import Library
from tests.support.hosts import HostServer, PromptRefusedError, error_message
from tests.support.prompts import teaching

pytestmark = pytest.mark.host


@pytest.fixture
def folder(server: HostServer, tmp_path: Path) -> Path:
    """Four pictures of an alpha channel, a photo's size, and a turned one; a caption for one of them."""
    place = server.input_dir / tmp_path.name
    place.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(((64, 64), (1024, 768), (64, 64))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(place / f"{number}.png")
    seen = Image.open(place / "0.png").convert("RGBA")
    seen.putalpha(Image.linear_gradient("L").resize((64, 64)))
    seen.save(place / "alpha.png")
    (place / "0.txt").write_bytes(b"\xef\xbb\xbfa red thing")
    (place / "notes.docx").write_bytes(b"x")
    return place


def loading(folder: str, resolution: int = 0, **more: str) -> dict[str, dict]:
    shown = {f"shown {i}": {"class_type": "PreviewAny", "inputs": {"source": ["load", i]}} for i in (1, 3)}
    load = {"class_type": "SeqLoRA_LoadPictures", "inputs": {"folder": folder, "resolution": resolution, **more}}
    images = {"class_type": "SaveImage", "inputs": {"images": ["load", 0], "filename_prefix": f"{folder} seen"}}
    return {"load": load, "images": images} | shown


def test_a_folder_is_read_as_the_core_reads_it(server: HostServer, folder: Path):
    outputs = server.run(loading(folder.name, 64))
    saved = [Image.open(server.output_dir / image["filename"]).size for image in outputs["images"]["images"]]
    assert saved == [(64, 64), (72, 56), (64, 64), (64, 64)]
    assert outputs["shown 1"]["text"] == ["a red thing", "", "", ""]
    report = outputs["load"]["text"][0]
    assert report.startswith("4 pictures, 1 with a caption\nleft out: notes.docx (")
    assert "alpha.png: what was transparent is white now" in report


def test_a_changed_folder_is_read_again(server: HostServer, folder: Path):
    server.run(loading(folder.name))
    (folder / "2.txt").write_text("another")
    assert server.run(loading(folder.name))["shown 1"]["text"] == ["a red thing", "", "another", ""]


def test_only_what_was_chosen_is_read_and_the_editor_is_told_the_same(server: HostServer, folder: Path):
    outputs = server.run(loading(folder.name, 64, pictures="2.png | a blue thing\n0.png\nalpha.png |"))
    assert outputs["shown 1"]["text"] == ["a blue thing", "a red thing", ""]
    told = server.get(f"/seqlora/pictures?folder={folder.name}&resolution=64")
    assert [(one["file"], one["becomes"]) for one in told["pictures"]][1] == ("1.png", [72, 56])
    for wrong in ("folder=..", "folder=/etc", f"folder={folder.name}&resolution=x", f"folder={folder.name}&resolution=99999"):
        with pytest.raises(HTTPError) as refused:
            server.get(f"/seqlora/pictures?{wrong}")
        assert refused.value.code == 400


@pytest.mark.parametrize("name", ["nowhere", "..", "../output", "/etc", ""])
def test_only_folders_inside_input_are_read(server: HostServer, folder: Path, name: str):
    try:
        told = error_message(server.wait(server.post_prompt(loading(name))))
    except PromptRefusedError as error:
        told = str(error)
    assert "There is no folder" in told or "not in" in told


def test_a_photo_is_taught_at_the_models_size(server: HostServer, folder: Path, tmp_path: Path):
    prompt = teaching(tmp_path.name, concept="photo", steps=2, batch_size=1, method="lora", preview_every=0)
    prompt["train"]["inputs"] |= {"images": ["load", 0], "captions": ["load", 1], "trigger": "zorv", "class_word": "thing"}
    prompt |= {key: node for key, node in loading(folder.name).items() if key == "load"}
    del prompt["pictures"]
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": ["train", 2]}}
    (report,) = server.run(prompt)["report"]["text"]
    assert "1 of 4 pictures have far more pixels than this model takes" in report and "1024 x 768 to 72 x 56" in report
    assert Library.open(server.models_dir / "seqlora" / tmp_path.name).names == ["photo"]
