"""Pictures that were chosen by name, and what is told of a folder before it is taught."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seqlora.errors import SeqLoRAError
from seqlora.io.picture_list import parse_list, survey
from seqlora.io.pictures import read_folder

# Held against the editor's reading of the same texts in tests/browser/test_pictures.py.
LISTS = [
    ("", None),
    ("\n  \n", None),
    ("1.jpg", {"1.jpg": None}),
    (" 2.jpg \n1.jpg", {"2.jpg": None, "1.jpg": None}),
    ("1.jpg | a red kettle", {"1.jpg": "a red kettle"}),
    ("1.jpg|a|b", {"1.jpg": "a|b"}),
    ("1.jpg |", {"1.jpg": ""}),
    ("my mug.png\r\nIMG_2 (1).JPG | on a table  ", {"my mug.png": None, "IMG_2 (1).JPG": "on a table"}),
    ("| a caption of nothing", None),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (64, 64)), ("b.jpg", (1024, 768)), ("c.png", (300, 100))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(tmp_path / name)
    Image.open(tmp_path / "a.png").save(tmp_path / "d.png")
    alpha = Image.open(tmp_path / "c.png").convert("RGBA")
    alpha.paste((0, 0, 0, 0), (0, 0, 150, 100))
    alpha.save(tmp_path / "e.png")
    (tmp_path / "b.txt").write_text("a blue thing")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


@pytest.mark.parametrize(("text", "chosen"), LISTS)
def test_lines_name_files_and_captions(text: str, chosen: dict | None):
    assert parse_list(text) == chosen


def test_a_file_cannot_be_named_twice():
    with pytest.raises(SeqLoRAError, match=r"'1\.jpg' twice"):
        parse_list("1.jpg\n2.jpg\n1.jpg | a")


def test_the_chosen_are_read_in_their_order_with_their_captions(folder: Path):
    found = read_folder(folder, 64, parse_list("e.png | a glass thing\nb.jpg\na.png |"))
    assert [picture.file for picture in found.pictures] == ["e.png", "b.jpg", "a.png"]
    assert found.captions == ["a glass thing", "a blue thing", ""]
    assert found.left_out == {}


def test_one_that_is_not_there_is_named(folder: Path):
    with pytest.raises(SeqLoRAError, match=r"no picture 'z\.png' in .*; put the file back"):
        read_folder(folder, None, parse_list("a.png\nz.png"))
    with pytest.raises(SeqLoRAError, match=r"no picture '\.\./a\.png'"):
        read_folder(folder, None, parse_list("../a.png"))


def test_a_survey_tells_what_the_reader_will_give(folder: Path):
    told = survey(folder, 64)
    json.dumps(told)
    by_name = {one["file"]: one for one in told["pictures"]}
    read = read_folder(folder, 64)
    assert list(by_name) == [picture.file for picture in read.pictures] == ["a.png", "b.jpg", "c.png", "d.png", "e.png"]
    for picture in read.pictures:
        one = by_name[picture.file]
        assert one["becomes"] == (picture.image.shape[1], picture.image.shape[0])
        assert one["transparent"] == (picture.mask is not None)
        twin = [f"{one['twin']['how']} {one['twin']['file']}"] if one["twin"] else []
        assert [*one["remarks"], *twin] == list(picture.remarks)
        assert one["caption"] == picture.caption
    assert by_name["b.jpg"]["size"] == (1024, 768) and by_name["b.jpg"]["kept"] == (0.964, 1.0)
    assert by_name["c.png"]["kept"][0] < 0.7  # a panorama keeps its middle
    assert by_name["d.png"]["twin"] == {"how": "the same as", "file": "a.png"}
    assert "cannot be read" in told["left_out"]["broken.png"] and told["more"] == 0


def test_a_thumbnail_shows_all_of_the_picture_and_what_is_transparent(folder: Path):
    (one,) = (one for one in survey(folder, 64)["pictures"] if one["file"] == "e.png")
    thumbnail = Image.open(io.BytesIO(base64.b64decode(one["thumbnail"].partition(",")[2])))
    assert thumbnail.size == (160, 53) and thumbnail.mode == "RGBA"
    assert thumbnail.getpixel((20, 20))[3] == 0 and thumbnail.getpixel((140, 20))[3] == 255


def test_a_turned_photo_is_upright_in_a_survey(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.jpg", exif=exif)
    (one,) = survey(tmp_path)["pictures"]
    assert one["size"] == one["becomes"] == (48, 64)


def test_a_survey_of_an_empty_folder_is_empty_and_a_changed_file_is_looked_at_again(tmp_path: Path):
    assert survey(tmp_path / "nowhere") == {"pictures": [], "left_out": {}, "more": 0}
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    assert survey(tmp_path)["pictures"][0]["size"] == (64, 64)
    Image.new("RGB", (80, 64), "red").save(tmp_path / "a.png")
    assert survey(tmp_path)["pictures"][0]["size"] == (80, 64)
