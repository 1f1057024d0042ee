"""`@name` in prompts: what is said, what is switched on, and what belongs to the host."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqlora.errors import SeqLoRAError
from seqlora.library.manifest import Record
from seqlora.prompt.grammar import read_prompt


def record(number: int, name: str, trigger: str, class_word: str = "") -> Record:
    return Record(number, name, trigger, class_word, f"concepts/{number}.safetensors", "", "", "", "", [], {}, {})


REX, KETTLE, RED = record(1, "rex", "zorv", "dog"), record(2, "red kettle", "vosk", "kettle"), record(3, "red", "mivu")
PENGUIN = record(4, "\u4f01\u9e45", "\u4f50\u5c14\u592b", "\u4f01\u9e45")
ACCENT = record(5, "Zo\u00e9", "zo\u00e9l", "girl")
LONG = record(6, "rex 2", "zorv two", "dog")
ALL = [REX, KETTLE, RED, PENGUIN, ACCENT, LONG]

READ = [
    ("a photo of @rex", "a photo of zorv dog", {"rex": 1}),
    ('a photo of @rex beside @"red kettle":0.8', "a photo of zorv dog beside vosk kettle", {"rex": 1, "red kettle": 0.8}),
    ("@red kettle, @red", "vosk kettle, mivu", {"red kettle": 1, "red": 1}),  # the longest name that stands there
    ('@"red" kettle', "mivu kettle", {"red": 1}),
    ("@REX and @Rex", "zorv dog and zorv dog", {"rex": 1}),
    ("@rex, @rex:0.5", "zorv dog, zorv dog", {"rex": 0.5}),
    ("@rex:0.5 @rex", "zorv dog zorv dog", {"rex": 0.5}),
    ("@rex:0", "zorv dog", {"rex": 0}),
    ("@rex:-.5", "zorv dog", {"rex": -0.5}),
    ("@rex: a dog", "zorv dog: a dog", {"rex": 1}),
    ("at 12:30 @rex:2, 12:30", "at 12:30 zorv dog, 12:30", {"rex": 2}),
    ("@rex's ball", "zorv dog's ball", {"rex": 1}),
    ("@rex.", "zorv dog.", {"rex": 1}),
    ("@rex 2 runs", "zorv two dog runs", {"rex 2": 1}),
    # the host's syntax around it
    ("(@rex:1.2)", "(zorv dog:1.2)", {"rex": 1}),
    ("(@rex:0.8:1.2)", "(zorv dog:1.2)", {"rex": 0.8}),
    ("(a @rex:0.8 here:1.1)", "(a zorv dog here:1.1)", {"rex": 0.8}),
    ("((@rex))", "((zorv dog))", {"rex": 1}),
    (r"\(@rex:0.5)", r"\(zorv dog)", {"rex": 0.5}),
    ("embedding:bad @rex {a|b} __wild__ <lora:x:1>", "embedding:bad zorv dog {a|b} __wild__ <lora:x:1>", {"rex": 1}),
    # plain signs
    (r"me\@home", "me@home", {}),
    ("me@rex.com", "me@rex.com", {}),
    ("a @ b", "a @ b", {}),
    ("@", "@", {}),
    ("@@rex", "@@rex", {}),
    ("a photo of a dog", "a photo of a dog", {}),
    ("", "", {}),
    # triggers that are written out
    ("a photo of zorv dog", "a photo of zorv dog", {"rex": 1}),
    ("ZORV, (vosk:1.3)", "ZORV, (vosk:1.3)", {"rex": 1, "red kettle": 1}),
    ("zorv two", "zorv two", {"rex 2": 1}),
    ("zorvian zorv2", "zorvian zorv2", {}),
    ("zorv_dog", "zorv_dog", {"rex": 1}),
    ("@rex:0.3 zorv", "zorv dog zorv", {"rex": 0.3}),
    (
        "\u4e00\u53ea\u4f50\u5c14\u592b\u5728\u96ea\u4e2d",
        "\u4e00\u53ea\u4f50\u5c14\u592b\u5728\u96ea\u4e2d",
        {"\u4f01\u9e45": 1},
    ),
    ("@\u4f01\u9e45\u5728\u96ea\u4e2d", "\u4f50\u5c14\u592b \u4f01\u9e45\u5728\u96ea\u4e2d", {"\u4f01\u9e45": 1}),
    ("@Zoe\u0301", "zo\u00e9l girl", {"Zo\u00e9": 1}),  # another way to write the accent
    ("zoe\u0301l", "zo\u00e9l", {"Zo\u00e9": 1}),
]


@pytest.mark.parametrize("text,said,strengths", READ, ids=[text for text, *_ in READ])
def test_a_prompt_is_read(text: str, said: str, strengths: dict[str, float]):
    prompt = read_prompt(text, ALL, weights=True)
    assert (prompt.text, prompt.strengths) == (said, strengths)


MIKU = record(7, "miku (v)", "miku_(vocaloid)", "singer :)")


@pytest.mark.parametrize(
    "text,host,headless",
    [
        ('@"miku (v)"', r"miku_\(vocaloid\) singer :\)", "miku_(vocaloid) singer :)"),
        ("@miku (v):0.5", r"miku_\(vocaloid\) singer :\)", "miku_(vocaloid) singer :)"),
        ("(@miku (v):1.2)", r"(miku_\(vocaloid\) singer :\):1.2)", "(miku_(vocaloid) singer :):1.2)"),
        ("a miku_(vocaloid) doll", r"a miku_\(vocaloid\) doll", "a miku_(vocaloid) doll"),  # written out
        (r"a Miku_\(vocaloid\) doll", r"a Miku_\(vocaloid\) doll", "a Miku_(vocaloid) doll"),
        (r"(a miku_(vocaloid):1.1) (b)", r"(a miku_\(vocaloid\):1.1) (b)", "(a miku_(vocaloid):1.1) (b)"),
    ],
)
def test_parentheses_of_a_trigger_are_text(text: str, host: str, headless: str):
    for weights, said in ((True, host), (False, headless)):
        prompt = read_prompt(text, [*ALL, MIKU], weights)
        assert (prompt.text, list(prompt.strengths)) == (said, ["miku (v)"])


def test_without_weights_a_backslash_before_a_parenthesis_is_none():
    assert read_prompt(r"\(a\) \o/ (b:1.2)", ALL).text == r"(a) \o/ (b:1.2)"
    assert read_prompt(r"\(a\) \o/ (b:1.2)", ALL, weights=True).text == r"\(a\) \o/ (b:1.2)"


@pytest.mark.parametrize(
    "text,sentence",
    [
        ("@rax", "There is no concept 'rax' in this library; did you mean @rex?"),
        ('@"red kettel"', "There is no concept 'red kettel' in this library; did you mean @red kettle?"),
        ("@xylophone", "There is no concept 'xylophone' in this library; it has: rex, red kettle"),
        ("@rex:1000", "The strength 1000 of @rex is too large; use one from -100 to 100."),
        ("@rex:0.5 @rex:0.6", "The prompt gives @rex two strengths"),
        ("@rex \ud83d", "The prompt holds half a character, of an emoji perhaps; type it anew."),
    ],
)
def test_what_cannot_be_is_one_sentence(text: str, sentence: str):
    with pytest.raises(SeqLoRAError) as refusal:
        read_prompt(text, ALL)
    assert str(refusal.value).startswith(sentence)


def test_an_empty_library_knows_no_name():
    assert read_prompt("a cat, me@home", []).text == "a cat, me@home"
    with pytest.raises(SeqLoRAError, match="the library has none yet"):
        read_prompt("@rex", [])


def test_a_trigger_of_two_concepts_must_be_told_apart():
    twins = [record(1, "one", "zorv", "dog"), record(2, "two", "Zorv", "cat")]
    with pytest.raises(SeqLoRAError, match="'zorv' is the trigger of one and two; write @one or @two"):
        read_prompt("zorv", twins)
    assert read_prompt("@two", twins).strengths == {"two": 1}


@given(st.text(st.characters(exclude_characters="@\\", exclude_categories=["Cs"])))
def test_a_text_that_names_nothing_passes_through(text: str):
    prompt = read_prompt(text, [record(1, "rex", "\U0001f9ff\U0001f9ff")])
    assert prompt.text == unicodedata.normalize("NFC", text)


@given(st.text('@\\rex:1.0( )"', max_size=12))
def test_any_text_is_read_or_refused_in_a_sentence(text: str):
    try:
        assert set(read_prompt(text, ALL).strengths) <= {r.name for r in ALL}
    except SeqLoRAError as refusal:
        assert str(refusal).endswith((".", "?"))
