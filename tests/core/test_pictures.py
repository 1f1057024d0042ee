"""The one reader of picture folders: every picture as a person sees it, every caption without what nobody typed."""

from __future__ import annotations

import codecs
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seqlora.errors import SeqLoRAError
from seqlora.io.pictures import fitted, read_folder, read_picture

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(size: tuple[int, int] = (64, 48), left: tuple = RED, right: tuple = BLUE, mode: str = "RGB") -> Image.Image:
    """Its left half in one colour, its right in another."""
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def noise(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def colour(image: torch.Tensor, x: float, y: float) -> tuple[int, ...]:
    """At a place given as a share of the sides."""
    h, w, _ = image.shape
    return tuple((image[int(y * h), int(x * w)] * 255).round().int().tolist())


# -- what a picture looks like

ORIENTATIONS = {1: (RED, BLUE), 2: (BLUE, RED), 3: (BLUE, RED), 4: (RED, BLUE)}  # left, right, once it is upright


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves().save(tmp_path / "a.png", exif=exif)
    image = read_picture(tmp_path / "a.png").image
    if orientation in ORIENTATIONS:
        assert image.shape == (48, 64, 3)
        assert (colour(image, 0.2, 0.5), colour(image, 0.8, 0.5)) == ORIENTATIONS[orientation]
    else:  # turned by a quarter: red is above or below
        assert image.shape == (64, 48, 3)
        above = RED if orientation in (5, 6) else BLUE
        assert colour(image, 0.5, 0.2) == above


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_what_is_transparent_is_white_and_said_to_be(tmp_path: Path, mode: str):
    image = noise(0).convert("RGBA")  # hidden colours behind
    image.putalpha(halves((64, 64), 255, 0, "L"))
    if mode in ("P", "PA"):
        palette = Image.new("P", (64, 64), 0)
        palette.putpalette([10, 200, 30, 0, 0, 0] + [0] * 762)
        palette.paste(1, (32, 0, 64, 64))
        palette.save(tmp_path / "a.png", transparency=1)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    assert (found.image[:, 33:] == 1).all() and not (found.image[:, :32] == 1).all()
    assert (found.mask[:, :32] == 1).all() and (found.mask[:, 32:] == 0).all()
    assert found.remarks == ("what was transparent is white now",)


def test_an_alpha_channel_that_hides_nothing_is_none(tmp_path: Path):
    halves().convert("RGBA").save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    assert found.mask is None and found.remarks == () and colour(found.image, 0.2, 0.5) == RED


@pytest.mark.parametrize("value,expected", [(0, 0), (32768, 128), (65535, 255), (257, 1)])
def test_sixteen_bits_are_scaled(tmp_path: Path, value: int, expected: int):
    Image.fromarray(np.full((32, 32), value, np.uint16)).save(tmp_path / "a.png")
    assert colour(read_picture(tmp_path / "a.png").image, 0.5, 0.5) == (expected,) * 3


@pytest.mark.parametrize("mode,value,expected", [("CMYK", (0, 255, 255, 0), RED), ("L", 90, (90,) * 3), ("1", 1, (255,) * 3)])
def test_other_kinds_of_colour(tmp_path: Path, mode: str, value: object, expected: tuple):
    Image.new(mode, (32, 32), value).save(tmp_path / "a.tiff")
    assert colour(read_picture(tmp_path / "a.tiff").image, 0.5, 0.5) == expected


def test_of_what_moves_the_first_frame_is_used(tmp_path: Path):
    first, second = Image.new("RGB", (32, 32), RED), Image.new("RGB", (32, 32), BLUE)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    found = read_picture(tmp_path / "a.gif")
    assert colour(found.image, 0.5, 0.5) == RED and found.remarks == ("it has several pages or moves; the first is used",)


def test_a_phones_photo_with_a_second_picture_behind_it_is_one_picture(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    halves((4000, 200)).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[noise(1)], exif=exif)
    found = read_picture(tmp_path / "a.jpg", 64)
    assert found.remarks == ("of its 200 x 4000 pixels the middle was cropped, as 48 x 88",)  # as seen, not as it is decoded


@pytest.mark.parametrize(
    "values,expected",
    [
        (np.float32([0, 0.5, 1]), (0, 128, 255)),
        (np.float32([0, 100, 255]), (0, 100, 255)),
        (np.float32([0, 32768, 65535]), (0, 128, 255)),
        (np.float32([np.nan, 0.5, -1]), (0, 128, 0)),
        (np.int32([0, 32768, 65535]), (0, 128, 255)),
        (np.int32([0, 50000, 100000]), (0, 128, 255)),
    ],
)
def test_numbers_of_more_than_eight_bits_are_brightness(tmp_path: Path, values: np.ndarray, expected: tuple):
    Image.fromarray(np.repeat(values[None], 3, axis=0)).save(tmp_path / "a.tif")
    assert tuple((read_picture(tmp_path / "a.tif").image[0, :, 0] * 255).round().int().tolist()) == expected


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "gif", "bmp", "avif"])
def test_a_damaged_file_is_a_sentence_whatever_its_decoder_raises(tmp_path: Path, kind: str):
    """Bytes of a good file are changed at random; some give a picture still, none anything but a SeqLoRAError."""
    try:
        noise(0).save(tmp_path / f"a.{kind}")
    except (KeyError, ValueError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    good, rng = (tmp_path / f"a.{kind}").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(100):
        data = bytearray(good)
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(min(len(data), rng.choice([60, 400, len(data)])))] = rng.randrange(256)
        (tmp_path / f"b.{kind}").write_bytes(data)
        try:
            read_picture(tmp_path / f"b.{kind}", 64)
        except SeqLoRAError as error:
            refused += 1
            assert str(error).startswith(f"b.{kind} cannot be read as a picture")
    assert refused


# -- sizes


@pytest.mark.parametrize(
    "size,resolution,expected",
    [
        ((512, 512), 512, (512, 512)),
        ((1024, 768), 512, (576, 448)),
        ((768, 1024), 512, (448, 576)),
        ((4000, 40), 512, (704, 384)),  # at most twice as wide as high, to the grid
        ((40, 4000), 512, (384, 704)),
        ((64, 64), 64, (64, 64)),
        ((1024, 768), 64, (72, 56)),
        ((16, 16), 64, (64, 64)),
        ((6000, 4000), 1024, (1280, 832)),
    ],
)
def test_a_picture_is_made_to_fit(size: tuple[int, int], resolution: int, expected: tuple[int, int]):
    assert fitted(Image.new("RGB", size), resolution).size == expected


def test_the_middle_is_kept(tmp_path: Path):
    image = Image.new("RGB", (640, 64), BLUE)
    image.paste(RED, (288, 0, 352, 64))
    image.save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", 64)
    assert colour(found.image, 0.5, 0.5) == RED and "the middle was cropped" in found.remarks[0]


def test_a_small_picture_is_said_to_be(tmp_path: Path):
    noise(0, (20, 20)).save(tmp_path / "a.png")
    assert "it is small (20 x 20)" in read_picture(tmp_path / "a.png", 512).remarks[0]


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_no_picture_is_held_at_more_pixels_than_any_model_takes(tmp_path: Path, kind: str):
    halves((6000, 3000)).save(tmp_path / f"a.{kind}")
    found = read_picture(tmp_path / f"a.{kind}")
    assert (
        found.image.shape == (1448, 2896, 3) and colour(found.image, 0.2, 0.5)[0] > 240 > 10 > colour(found.image, 0.8, 0.5)[0]
    )
    assert found.remarks == ("its 6000 x 3000 pixels were scaled down to 2896 x 1448",)


def test_a_large_picture_is_scaled_like_a_small_one():
    """Its average over every block, within the little that a sharper filter differs from it."""
    smooth = np.asarray(noise(0, (8, 8)).resize((1600, 1600), Image.Resampling.BICUBIC))
    small = np.asarray(fitted(Image.fromarray(smooth), 64)).astype(float)
    blocks = smooth.reshape(64, 25, 64, 25, 3).mean((1, 3))
    assert np.abs(small - blocks).mean() < 1.5


def test_a_photo_of_24_megapixels_is_read_small(tmp_path: Path):
    halves((6000, 4000)).save(tmp_path / "a.jpg")
    image = read_picture(tmp_path / "a.jpg", 64).image
    assert image.shape == (56, 80, 3) and colour(image, 0.2, 0.5)[0] > 240 > 10 > colour(image, 0.8, 0.5)[0]


# -- folders


def test_a_folder_of_all_sorts(tmp_path: Path):
    for number, name in enumerate(["10.PNG", "2.jpg", "a.jfif", "b.JPEG", "c.bmp", "d.tif", "e.gif", "f.webp"]):
        noise(number).save(tmp_path / name, format={"jfif": "JPEG", "webp": "WEBP"}.get(name[2:]))
    for hidden in ("._2.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / hidden).write_bytes(b"x")
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "g.png").write_bytes(b"")
    (tmp_path / "h.jpg").write_text("<html>")
    (tmp_path / "i.heic").write_bytes(b"x")
    noise(9).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "lost.txt").write_text("a caption of nothing")
    (tmp_path / "sub").mkdir()
    found = read_folder(tmp_path)
    names = ["2.jpg", "10.PNG", "a.jfif", "b.JPEG", "c.bmp", "d.tif", "e.gif", "f.webp", "whole.png"]
    assert [picture.file for picture in found.pictures] == names
    assert sorted(found.left_out) == ["clip.mp4", "cut.png", "g.png", "h.jpg", "i.heic", "lost.txt"]
    assert "cannot be read as a picture" in found.left_out["g.png"] and found.left_out["lost.txt"] == "no picture of that name"
    assert found.lines()[0] == "9 pictures, 0 with a caption" and found.lines()[1].startswith("left out: ")


def test_nothing_to_read_is_one_sentence(tmp_path: Path):
    with pytest.raises(SeqLoRAError, match="There are no pictures in .*; put .png, .jpg or .webp files there"):
        read_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(SeqLoRAError, match="There are no pictures in .* \\(a.png cannot be read as a picture"):
        read_folder(tmp_path)
    with pytest.raises(SeqLoRAError, match="There are no pictures in"):
        read_folder(tmp_path / "nowhere")


def test_duplicates_are_named(tmp_path: Path):
    noise(0).save(tmp_path / "a.png")
    noise(0).save(tmp_path / "b.png")
    noise(0).save(tmp_path / "c.jpg", quality=70)
    noise(1).save(tmp_path / "d.png")
    noise(0).resize((100, 100)).save(tmp_path / "e.png")
    remarks = {picture.file: picture.remarks for picture in read_folder(tmp_path).pictures}
    assert remarks["a.png"] == remarks["d.png"] == ()
    assert remarks["b.png"] == ("the same as a.png",) and "like a.png" in remarks["c.jpg"][0] and "like" in remarks["e.png"][0]


@pytest.mark.parametrize("alike", [True, False])
def test_what_lies_in_one_place_on_white_is_alike_only_in_one_colour(tmp_path: Path, alike: bool):
    for name, fill in (("a", (200, 30, 30)), ("b", (195, 35, 30) if alike else (30, 60, 200))):
        image = Image.new("RGB", (64, 64), (255, 255, 255))
        image.paste(fill, (20, 20, 44, 44))
        image.save(tmp_path / f"{name}.png")
    remarks = read_folder(tmp_path).pictures[1].remarks
    assert remarks == (("much like a.png",) if alike else ())


def test_the_order_is_that_of_the_names_and_not_of_the_disk(tmp_path: Path):
    names = ["01.png", "1.png", "001.png", "A.png", "a.png", "1a.png", "a1b2.png", "a1b10.png"]
    for number, name in enumerate(names):
        noise(number).save(tmp_path / name)
    expected = ["001.png", "01.png", "1.png", "1a.png", "A.png", "a.png", "a1b2.png", "a1b10.png"]
    assert [picture.file for picture in read_folder(tmp_path).pictures] == expected


def test_a_name_that_is_no_text_can_be_said(tmp_path: Path):
    try:
        noise(0).save(os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this disk takes no such name")
    (found,) = read_folder(tmp_path).pictures
    assert found.file.encode() == "caf\ufffd.png".encode()


# -- captions

TEXTS = {
    "plain": (b"a dog", "a dog"),
    "mark": (codecs.BOM_UTF8 + b"a dog", "a dog"),
    "utf-16": ("a dog".encode("utf-16"), "a dog"),
    "utf-32": ("a dog".encode("utf-32"), "a dog"),
    "utf-32 be": (codecs.BOM_UTF32_BE + "a dog".encode("utf-32-be"), "a dog"),
    "direction": ("\u200ea \u202adog\u202c\u2066\u2069".encode(), "a dog"),
    "control": (b"a\x07 dog\x1b\x7f", "a dog"),
    "utf-16 be": (codecs.BOM_UTF16_BE + "a dog".encode("utf-16-be"), "a dog"),
    "no width": ("\u200ba\u2060 \ufeffdog\u00ad".encode(), "a dog"),
    "decomposed": ("zoe\u0301".encode(), "zo\u00e9"),
    "lines": (b"a dog,\r\n on a\tchair \n", "a dog, on a chair"),
    "joined": ("\U0001f468\u200d\U0001f469".encode(), "\U0001f468\u200d\U0001f469"),  # one family, not a man and a woman
    "empty": (b"", ""),
    "blank": (b" \r\n", ""),
    "only a mark": (codecs.BOM_UTF8, ""),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_caption_is_what_was_typed(tmp_path: Path, kind: str):
    noise(0).save(tmp_path / "a.png")
    data, expected = TEXTS[kind]
    (tmp_path / "a.txt").write_bytes(data)
    assert read_folder(tmp_path).captions == [expected]


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.caption", "a.Caption"])
def test_captions_of_either_name_in_any_case(tmp_path: Path, name: str):
    noise(0).save(tmp_path / "a.PNG")
    noise(1).save(tmp_path / "b.png")
    (tmp_path / name).write_text("a dog")
    assert read_folder(tmp_path).captions == ["a dog", ""]


@pytest.mark.parametrize(
    "picture,caption",
    [
        ("zoe\u0301.png", "zo\u00e9.txt"),  # as one system writes it, and another
        ("zo\u00e9.png", "zoe\u0301.txt"),
        ("IMG_1.JPG", "img_1.txt"),
        ("stra\u00dfe.png", "STRASSE.TXT"),
        ("a.b.png", "a.b.txt"),
    ],
)
def test_a_caption_is_found_by_what_a_person_takes_for_its_pictures_name(tmp_path: Path, picture: str, caption: str):
    noise(0).save(tmp_path / picture)
    (tmp_path / caption).write_text("a dog")
    assert read_folder(tmp_path).captions == ["a dog"]


def test_of_two_captions_one_is_used_and_the_other_named(tmp_path: Path):
    noise(0).save(tmp_path / "a.png")
    noise(1).save(tmp_path / "A.png")
    for name in ("a.caption", "a.txt", "A.txt"):
        (tmp_path / name).write_text(f"from {name}")
    found = read_folder(tmp_path)
    if len(found.pictures) == 1:
        pytest.skip("this disk takes a.png and A.png for one")
    assert found.captions == ["from A.txt", "from a.txt"] and list(found.left_out) == ["a.caption"]
    assert found.left_out["a.caption"].endswith(".txt is used")


@pytest.mark.parametrize(
    "data",
    [
        "a dog".encode("utf-16-le"),
        "a dog".encode("utf-16-be"),
        "caf\u00e9".encode("cp1252"),
        b"\xff\xfe\xfa",
        "\u4f60\u597d".encode("gb18030"),
        b"\x80",
    ],
)
def test_a_caption_that_is_no_text_names_its_file(tmp_path: Path, data: bytes):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(SeqLoRAError, match=r"a\.txt cannot be read as text .*; save it as UTF-8 text"):
        read_folder(tmp_path)
