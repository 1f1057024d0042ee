"""The editor's reading of a selection against the Python one, on the same texts; the browser runs the one, we the other."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest

from seqlora.errors import SeqLoRAError
from seqlora.lora.compose import parse_selection
from tests.support.stub import StubServer

KNOWN = ["cat", "dog", "L\u00f3ve \u2764", "two words"]
NAMES = [*KNOWN, "*", "*", "auto", "Lo\u0301ve \u2764", "bird", "Cat", "DOG", "two  words", "a:b", "<lora:cat", "\x1fcat"]
NUMBERS = ["1", "0.8", "0", "-0.5", "+2", ".5", "5.", "1e-1", "1E2", "100", "100.5", "1e400", "-0", "0x10", "inf", "nan", ""]
NUMBERS += ["strong", "1_0", "1 0", "\uff11", "\u0661", "1,5", "1e", "--1", ".", "\u2212" + "1", "0.8>"]
SPACES = ["", "", "", " ", "\t", "\u00a0", "\u3000", "\x1f", "\u2003"]
COLONS = [":", ":", ":", "\uff1a"]
ENDS = ["\n", "\n", "\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"]
REMARKS = ["", "", "", "# dog", " # for L\u00f3ve: 2", "#", "## *"]
WANTED = [0, 1, 0.8, -0.5, 0.05, 100]


@pytest.fixture(scope="module")
def script(chromium: Any, stub_server: StubServer) -> Iterator[Any]:
    """Runs functions of selection.mjs."""
    page = chromium.new_page()
    page.goto(f"{stub_server.url}/extensions/seqlora/picker/selection.mjs")

    def run(body: str, given: Any) -> Any:
        return page.evaluate(f"async (given) => {{ const m = await import(location.href); return ({body})(m, given) }}", given)

    yield run
    page.close()


def texts(count: int, seed: int) -> list[str]:
    """Some are selections, more are nearly."""
    rng = random.Random(seed)

    def line(odd: float) -> str:
        spaces = SPACES if rng.random() < odd else SPACES[:4]
        numbers = NUMBERS if rng.random() < odd else NUMBERS[:10]
        name = rng.choice(NAMES if rng.random() < odd else NAMES[:6])
        number = (
            "" if rng.random() < 0.4 else rng.choice(spaces) + rng.choice(COLONS) + rng.choice(spaces) + rng.choice(numbers)
        )
        said = "" if rng.random() < 0.15 else rng.choice(spaces) + name + number
        return said + rng.choice(spaces) + rng.choice(REMARKS)

    found = []
    for _ in range(count):
        odd = rng.choice([0, 0, 0.3])
        end = rng.choice(ENDS) if rng.random() < odd else "\n"
        found.append(end.join(line(odd) for _ in range(rng.randint(0, 4))) + rng.choice(["", "", end]))
    return found


def selected(text: str) -> list[list[Any]] | None:
    """As JSON would have it; None where it is refused."""
    try:
        return [[name, float(strength)] for name, strength in parse_selection(text, KNOWN, {}).items()]
    except SeqLoRAError:
        return None


def lines(text: str) -> list[tuple[str, str]]:
    """(name, the line without its end) of every line; the name of a remark is ''."""
    named = []
    for line in re.split(r"\r\n|\r|\n", text):
        said = unicodedata.normalize("NFC", line).partition("#")[0]
        name = re.split("[:\uff1a]", said)[0].strip(" \t\u00a0\u3000")
        named.append((next((known for known in KNOWN if known.lower() == name.lower()), name), line))
    return named


READ = "({ parse }, { texts, known }) => texts.map((t) => { const p = parse(t, known); return p.problem ? null : [...p.on] })"
CHANGE = "({ change }, { cases, known }) => cases.map(([text, name, strength]) => change(text, known, name, strength))"


def test_both_read_the_same(script: Any):
    given = texts(4000, seed=1)
    expected = [selected(text) for text in given]
    assert 1000 < sum(found is None for found in expected) < 3000  # some of either kind
    found = script(READ, {"texts": given, "known": KNOWN})
    wrong = [(text, own, other) for text, own, other in zip(given, expected, found, strict=True) if own != other]
    assert wrong == []


def test_a_change_does_what_is_asked_and_nothing_else(script: Any):
    rng = random.Random(2)
    good = [text for text in texts(3000, seed=3) if selected(text) is not None]
    cases = [(text, rng.choice(KNOWN), rng.choice(WANTED)) for text in good]
    changed = script(CHANGE, {"cases": cases, "known": KNOWN})
    assert len(cases) > 1000
    for (text, name, strength), after in zip(cases, changed, strict=True):
        case = (text, name, strength, after)
        before = dict(selected(text) or [])
        wanted = before | {name: float(strength)}
        assert dict(selected(after) or []) == {n: s for n, s in wanted.items() if s}, case
        if before.get(name, 0) == strength:
            assert after == text, case
        others = [line for other, line in lines(text) if other != name and line]
        assert [line for other, line in lines(after) if other != name and line] == others, case
        assert [line.partition("#")[2] for _, line in lines(after) if "#" in line] == [
            line.partition("#")[2] for _, line in lines(text) if "#" in line
        ], case  # no remark is lost


def test_off_undoes_on(script: Any):
    given = [t for t in texts(3000, seed=4) if selected(t) is not None]
    fresh = [(t, n) for t in given for n in KNOWN if n not in dict(lines(t)) and dict(selected(t) or []).get(n, 0) == 0]
    on = script(CHANGE, {"cases": [(text, name, 0.8) for text, name in fresh], "known": KNOWN})
    off = script(CHANGE, {"cases": [(text, name, 0) for text, (_, name) in zip(on, fresh, strict=True)], "known": KNOWN})
    assert len(fresh) > 500
    assert off == [text for text, _ in fresh]


@pytest.mark.parametrize(
    "text,name,strength,expected",
    [
        ("", "cat", 1, "cat"),
        ("dog\n", "cat", 0.5, "dog\ncat: 0.5\n"),
        ("  cat  :  1   # my cat", "cat", 0.3, "  cat  :  0.3   # my cat"),
        ("cat # my cat\r\ndog", "cat", 0.3, "cat: 0.3 # my cat\r\ndog"),
        ("cat: 0.8 # my cat", "cat", 0, "cat: 0 # my cat"),
        ("Lo\u0301ve \u2764\ndog", "L\u00f3ve \u2764", 2, "L\u00f3ve \u2764: 2\ndog"),
        ("*", "cat", 0, "*\ncat: 0"),
        ("*\ncat: 0", "cat", 1, "*"),
        ("*: 0.5", "cat", 1, "*: 0.5\ncat"),
        (" CAT\uff1a1", "cat", 0.5, " cat\uff1a0.5"),
        ("cat: much", "cat", 0.8, "cat: 0.8"),  # what was wrong is mended
        ("cat: 0.5\ndog\ncat", "cat", 0.8, "cat: 0.8\ndog"),
        ("bird\ncat", "cat", 0, "bird"),  # and what is not asked about is left alone
    ],
)
def test_changes(script: Any, text: str, name: str, strength: float, expected: str):
    assert script(CHANGE, {"cases": [(text, name, strength)], "known": KNOWN}) == [expected]
