"""Browsing libraries over HTTP in a real ComfyUI: what is told, what is changed, and that no name leads out of a library."""

from __future__ import annotations

import io
import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from urllib.parse import quote

import pytest
from PIL import Image

from seqlora.io.safetensors_file import read_tensors, write_tensors
from seqlora.library.lock import LibraryLock
from seqlora.library.store import Library
from seqlora.library.thumbnails import KEY, decode
from seqlora.library.verify import verify
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.events import listening
from tests.support.hosts import HostServer
from tests.support.small import QUICK, SmallModel, contents, relist, small_request

pytestmark = [pytest.mark.host, pytest.mark.slow]
ATTACKS = [
    "../outside",
    "..",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "C:con",
    "nul",
    "\u2215etc",
    "a\x00b",
    ".hidden",
    "x" * 3000,
    "<b>",
]
CHANGES = ("rename", "remove")


@pytest.fixture(scope="module")
def taught(server: HostServer) -> Library:
    """Cat and dog, in a library that the server finds."""
    library = Library.create(server.models_dir / "seqlora" / "shelf", rank=4, capacity=3, targets="attention and mlp")
    model = SmallModel()
    for seed, name in enumerate(("cat", "dog")):
        library = run_to_end(train_steps(library, small_request(name, seed), QUICK, model)).library
    return library


@pytest.fixture
def library(taught: Library):
    """The same, and as it was when the test is over."""
    before = contents(taught.path)
    yield taught
    for path in taught.path.rglob("*.safetensors"):
        path.unlink()
    for name, data in before.items():
        (taught.path / name).write_bytes(data)


def ask(server: HostServer, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer, whatever it is; with a body it is a POST."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def refused(server: HostServer, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    status, _, text = ask(server, path, body, **headers)
    sentence = json.loads(text)["error"]
    assert sentence.endswith(".") and "\n" not in sentence and str(server.base) not in sentence
    return status, sentence


def concept_path(name: str, action: str) -> str:
    return f"/seqlora/libraries/shelf/concepts/{quote(name, safe='')}/{action}"


def test_libraries_are_listed_and_described(server: HostServer, library: Library):
    (line,) = [one for one in server.get("/seqlora/libraries")["libraries"] if one["name"] == "shelf"]
    targets = "attention and mlp"
    assert line == {"name": "shelf", "concepts": 2, "capacity": 3, "rank": 4, "targets": targets, "problem": ""}
    about = server.get("/api/seqlora/libraries/shelf")
    sizes = [(library.path / record.file).stat().st_size for record in library.concepts]
    assert (about["name"], about["left"], about["size"], about["targets"]) == ("shelf", 1, sum(sizes), targets)
    cat = about["concepts"][0]
    assert time.strptime(cat.pop("created"), "%Y-%m-%dT%H:%M:%SZ")
    assert cat == {
        "name": "cat",
        "trigger": "zyxcat",
        "class_word": "thing",
        "rank": 4,
        "size": sizes[0],
        "method": "seqlora",
        "steps": QUICK.steps,
        "thumbnail": True,
    }


def test_a_damaged_library_is_listed_with_what_is_wrong(server: HostServer):
    broken = server.models_dir / "seqlora" / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "library.json").write_text("{")
    (line,) = [one for one in server.get("/seqlora/libraries")["libraries"] if one["name"] == "broken"]
    assert "is damaged" in line["problem"] and line["problem"].endswith(".")
    assert ask(server, "/seqlora/libraries/broken")[0] == 400


def test_a_thumbnail_is_served_once(server: HostServer, library: Library):
    status, headers, data = ask(server, concept_path("dog", "thumbnail"))
    assert status == 200 and (headers["Content-Type"], data) == decode(library.thumbnail("dog"))
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, _, data = ask(server, concept_path("dog", "thumbnail"), **{"If-None-Match": headers["ETag"]})
    assert (status, data) == (304, b"")


@pytest.mark.parametrize("forged", ["data:text/html;base64,PGh0bWw+", "data:image/webp;base64,PGh0bWw+", None])
def test_a_forged_thumbnail_is_none(server: HostServer, library: Library, forged: str | None):
    path = library.path / library.find("dog").file
    tensors, header = read_tensors(path, library.concept_limit())
    header.pop(KEY)
    relist(library, "dog", sha256=write_tensors(path, tensors, header | ({KEY: forged} if forged else {})))
    assert [one["thumbnail"] for one in server.get("/seqlora/libraries/shelf")["concepts"]] == [True, False]
    assert refused(server, concept_path("dog", "thumbnail")) == (404, "Concept 'dog' has no picture.")


def test_renaming_and_removing(server: HostServer, library: Library):
    tensors, picture = library.load("dog"), library.thumbnail("dog")
    with listening(server) as heard:
        about = server.post(concept_path("dog", "rename"), {"to": " hound "})
        assert [one["name"] for one in about["concepts"]] == ["cat", "hound"]
        now = Library.open(library.path)
        assert now.names == ["cat", "hound"] and now.thumbnail("hound") == picture
        assert all(pair.basis.equal(tensors[layer].basis) for layer, pair in now.load("hound").items())
        about = server.post(concept_path("hound", "remove"), {})
        assert [one["name"] for one in about["concepts"]] == ["cat"] and about["left"] == 2
        assert heard.wait("seqlora.library", 2) == [{"name": "shelf"}] * 2
    assert verify(library.path) == []


@pytest.mark.parametrize("name", ["a{b}", "{}", "{name}", "a%7Bb", "}{"])
def test_names_with_braces_work_over_http(server: HostServer, library: Library, name: str):
    server.post(concept_path("dog", "rename"), {"to": name})
    assert server.get(concept_path(name, "thumbnail"))
    about = server.post(concept_path(name, "remove"), {})
    assert [one["name"] for one in about["concepts"]] == ["cat"]


@pytest.mark.parametrize("said", ["cafe\u0301", "caf\u00e9", "CAF\u00c9"])
def test_names_in_other_letters_work_over_http(server: HostServer, library: Library, said: str):
    server.post(concept_path("dog", "rename"), {"to": "caf\u00e9"})
    assert server.get(concept_path(said, "thumbnail"))
    about = server.post(concept_path(said, "remove"), {})
    assert [one["name"] for one in about["concepts"]] == ["cat"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"to": "cat"}', "has a concept 'cat' already"),
        (b'{"to": "CAT"}', "has a concept 'CAT' already"),
        (b'{"to": ""}', "The concept name is empty"),
        (b"", "The concept name is empty"),
        (b'{"to": "a/b"}', "'a/b' contains '/'"),
        (b'{"to": "../../x"}', "contains '/'"),
        (b'{"to": 7}', "must be an object such as"),
        (b'{"to": "x", "path": "/etc"}', "must be an object such as"),
        (b'["to"]', "must be an object such as"),
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
    ],
)
def test_a_name_that_cannot_be_changes_nothing(server: HostServer, library: Library, body: bytes, words: str):
    before = contents(library.path)
    status, sentence = refused(server, concept_path("dog", "rename"), body)
    assert status == 400 and words in sentence
    assert contents(library.path) == before


@pytest.mark.parametrize("action", CHANGES)
def test_a_training_that_writes_is_told_at_once(server: HostServer, library: Library, action: str):
    with LibraryLock(library.path).short():
        began = time.monotonic()
        status, sentence = refused(server, concept_path("dog", action), b'{"to": "hound"}')
        assert status == 409 and sentence.startswith("A training is writing to library 'shelf';")
        assert time.monotonic() - began < 4  # the short patience of other writers is 5
        assert len(server.get("/seqlora/libraries/shelf")["concepts"]) == 2  # reading goes on
    assert Library.open(library.path) == library


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_name_leads_out(server: HostServer, library: Library, attack: str):
    secret = server.models_dir / "outside"
    secret.mkdir(exist_ok=True)
    (secret / "library.json").write_text("secret")
    before, name = contents(server.models_dir), quote(attack, safe="")
    place = f"/seqlora/libraries/{name}"
    for path in (place, f"{place}/report", f"{place}/report.png", f"{place}/concepts/cat/thumbnail"):
        assert_nothing_there(*ask(server, path))
    assert_nothing_there(*ask(server, f"/seqlora/libraries/shelf/concepts/{name}/thumbnail"))
    for action in CHANGES:
        assert_nothing_there(*ask(server, f"{place}/concepts/cat/{action}", b'{"to": "x"}'))
        assert_nothing_there(*ask(server, f"/seqlora/libraries/shelf/concepts/{name}/{action}", b'{"to": "x"}'))
    assert contents(server.models_dir) == before


def assert_nothing_there(status: int, headers: dict[str, str], body: bytes) -> None:
    assert status in (400, 404) and b"secret" not in body
    assert b"<b>" not in body or "json" in headers["Content-Type"]


@pytest.mark.parametrize("action", CHANGES)
def test_other_sites_cannot_ask(server: HostServer, library: Library, action: str):
    before = contents(library.path)
    for headers in ({"Origin": "http://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert ask(server, concept_path("dog", action), b'{"to": "x"}', **headers)[0] == 403
        assert ask(server, "/api" + concept_path("dog", action), b'{"to": "x"}', **headers)[0] == 403
    assert contents(library.path) == before


def test_the_report_as_figures_and_as_a_picture(server: HostServer, library: Library):
    figures = server.get("/seqlora/libraries/shelf/report")
    assert [concept["name"] for concept in figures["concepts"]] == ["cat", "dog"]
    status, headers, data = ask(server, "/seqlora/libraries/shelf/report.png?theme=dark")
    assert status == 200 and headers["Content-Type"] == "image/png" and headers["X-Content-Type-Options"] == "nosniff"
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG" and min(image.size) > 200
    assert ask(server, "/seqlora/libraries/shelf/report.png", **{"If-None-Match": headers["ETag"]})[0] == 304


def test_the_report_of_nothing_is_a_sentence(server: HostServer):
    Library.create(server.models_dir / "seqlora" / "bare", rank=4, capacity=3, targets="attention")
    for path in ("report", "report.png"):
        status, sentence = refused(server, f"/seqlora/libraries/bare/{path}")
        assert status == 400 and "has no concepts yet" in sentence


def test_a_library_goes_out_as_one_file_and_comes_in(server: HostServer, library: Library):
    status, _, text = ask(server, "/seqlora/libraries/shelf/pack", b"")
    told = json.loads(text)
    assert status == 200 and told["name"] == "shelf.zip"
    _, _, packed = ask(server, "/view?" + urllib.parse.urlencode(told["view"]))
    assert len(packed) == told["size"] and ask(server, "/seqlora/libraries/shelf/pack", b"")[2] == text
    status, _, text = ask(server, "/seqlora/unpack", packed)
    made = library.path.with_name("shelf 2")
    try:
        assert status == 200 and json.loads(text)["name"] == "shelf 2"
        assert contents(made) == contents(library.path) and verify(made) == []
        assert "shelf 2" in {told["name"] for told in json.loads(ask(server, "/seqlora/libraries")[2])["libraries"]}
    finally:
        shutil.rmtree(made)
    for data in (b"", b"no zip", packed[:-50]):
        assert "library.zip is no library's file, or not a whole one" in refused(server, "/seqlora/unpack", data)[1]
    assert not [path for path in library.path.parent.iterdir() if path.name.startswith(".unpack") or path.name == "shelf 2"]
