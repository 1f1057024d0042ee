"""A concept's picture in its file: made small, kept through every change of the file, and never believed when read."""

import base64
import io
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from seqlora.io.safetensors_file import read_metadata, read_tensors, write_tensors
from seqlora.library.copy import copy
from seqlora.library.repair import repair
from seqlora.library.store import Library
from seqlora.library.thumbnails import KEY, MAX_BYTES, SIDE, decode, encode
from seqlora.library.writer import MANIFEST, LibraryWriter
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, relist, small_pictures, small_request


def uri(data: bytes, kind: str = "image/webp") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def drawn(kind: str, side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(24, 24), (SIDE, SIDE), (700, 300), (16, 2000)])
def test_any_picture_becomes_a_small_one(shape):
    noise = torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0))  # no picture is harder to make small
    kind, data = decode(encode(noise))
    with Image.open(io.BytesIO(data)) as image:
        assert kind == "image/webp" and image.format == "WEBP"
        assert len(data) <= MAX_BYTES and max(image.size) == min(SIDE, max(shape))


def test_a_flat_picture_keeps_its_colour():
    picture = torch.tensor([1.0, 0.5, 0.0]).expand(64, 64, 3)
    with Image.open(io.BytesIO(decode(encode(picture))[1])) as image:
        assert all(abs(a - b) <= 8 for a, b in zip(image.convert("RGB").getpixel((32, 32)), (255, 128, 0), strict=True))


FORGED = {
    "nothing": "",
    "no data URI": "https://elsewhere.example/picture.webp",
    "a page": uri(b"<html><script>alert(1)</script>", "text/html"),
    "a drawing that runs": uri(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "image/svg+xml"),
    "a page that says it is a picture": uri(b"<html><script>alert(1)</script>"),
    "a picture of another type": uri(drawn("PNG")),
    "a type that is not on the list": uri(drawn("PNG"), "image/png"),
    "more than one type": uri(drawn("WEBP"), "image/webp;charset=utf-8"),
    "a line end": uri(drawn("WEBP"), "image/webp\r\nX-More: 1"),
    "a large one": uri(drawn("WEBP", SIDE + 1)),
    "a very large one": uri(drawn("WEBP", 16000)),
    "a long one": uri(drawn("WEBP") + b"\0" * MAX_BYTES),
    "half of one": uri(drawn("WEBP")[:20]),
    "no base64": "data:image/webp;base64,UklGR====",
}


@pytest.mark.parametrize("what", FORGED)
def test_what_is_forged_is_no_thumbnail(library, what):
    with pytest.raises(ValueError):
        decode(FORGED[what])
    assert with_thumbnail(library, FORGED[what]).thumbnail("dog") == ""


@given(st.binary(max_size=200), st.integers(0, 60))
def test_bytes_never_raise_anything_else(data, cut):
    for forged in (data, drawn("WEBP")[:cut] + data, drawn("JPEG")[:cut] + data):
        for kind in ("image/webp", "image/jpeg"):
            try:
                assert decode(uri(forged, kind))[0] == kind
            except ValueError:
                pass


def with_thumbnail(library: Library, text: str | None) -> Library:
    """With this in the header of the dog's file, and a manifest that agrees."""
    record = library.find("dog")
    path = library.path / record.file
    tensors, header = read_tensors(path, library.concept_limit())
    header.pop(KEY)
    sha256 = write_tensors(path, tensors, header if text is None else header | {KEY: text})
    return relist(library, "dog", sha256=sha256)


def test_a_file_without_one_is_as_good_as_any(library):
    old = with_thumbnail(library, None)
    assert old.thumbnail("dog") == "" and old.load("dog").keys() == library.load("cat").keys()
    renamed = LibraryWriter(old).rename("dog", "hound")
    assert KEY not in read_metadata(renamed.path / renamed.find("hound").file)


def test_jpeg_of_another_hand_is_shown(library):
    theirs = uri(drawn("JPEG"), "image/jpeg")
    assert with_thumbnail(library, theirs).thumbnail("dog") == theirs


def test_it_is_the_first_picture_and_stays_with_the_concept(library, tmp_path):
    picture = library.thumbnail("dog")
    assert picture == encode(small_pictures(1)[0]) != library.thumbnail("cat")
    renamed = LibraryWriter(library).rename("dog", "hound")
    assert renamed.thumbnail("hound") == picture
    assert copy(renamed, ["hound"], tmp_path / "part").thumbnail("hound") == picture
    (renamed.path / MANIFEST).unlink()
    assert repair(renamed.path)[0].thumbnail("hound") == picture
    left = LibraryWriter(Library.open(renamed.path)).remove("hound")
    assert picture not in "".join(path.read_text(errors="ignore") for path in left.path.rglob("*") if path.is_file())


def test_teaching_anew_brings_the_new_picture(library):
    lesson = small_request("dog", seed=7)
    taught = run_to_end(train_steps(library, lesson, QUICK, SmallModel(), replace=True))
    assert taught.library.thumbnail("dog") == encode(lesson.pictures[0]) != library.thumbnail("cat")
    about = json.loads(read_metadata(taught.library.path / taught.record.file)["seqlora"])
    assert about["concepts"][0]["name"] == "dog"
