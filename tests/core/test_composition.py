"""Composition against the float64 sum, and the little language that selects concepts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqlora.errors import SeqLoRAError
from seqlora.lora.compose import compose, parse_selection
from seqlora.lora.types import LoRAPair

LAYERS = {"a": (6, 10), "b": (20, 5)}


def concept(seed, rank, layers=LAYERS, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return {
        name: LoRAPair(torch.randn(m, rank, generator=g).to(dtype), torch.randn(n, rank, generator=g).to(dtype))
        for name, (m, n) in layers.items()
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 5), st.floats(-2, 2, width=32)), min_size=1, max_size=16))
def test_the_concatenation_is_the_sum(parts):
    concepts = [(concept(seed, rank), strength) for seed, rank, strength in parts]
    found = compose(concepts)
    assert set(found) == set(LAYERS)
    for layer, (A, B) in found.items():
        terms = [s * c[layer].up.double() @ c[layer].basis.double().mT for c, s in concepts]
        largest = max(float(term.norm()) for term in terms)
        assert float((A.double() @ B.double().mT - sum(terms)).norm()) <= 1e-6 * largest
        assert A.shape[1] == B.shape[1] == sum(rank for _, rank, _ in parts)


def test_each_concept_has_its_own_block_in_order():
    one, two = concept(1, 2), concept(2, 3)
    found = compose([(one, 1.0), (two, 0.5)])["a"]
    assert torch.equal(found.basis, torch.cat([one["a"].basis, two["a"].basis], 1))
    assert torch.equal(found.up, torch.cat([one["a"].up, 0.5 * two["a"].up], 1))


def test_a_layer_that_one_concept_lacks_holds_the_others():
    whole, part = concept(1, 2), concept(2, 3, {"a": LAYERS["a"]})
    found = compose([(whole, 1.0), (part, 1.0)])
    assert found["a"].up.shape[1] == 5 and found["b"].up.shape[1] == 2


def test_nothing_composes_to_nothing():
    assert compose([]) == {}


KNOWN = ["cat", "dog", "red: car", "L\u00f3ve \u2764"]


@pytest.mark.parametrize(
    "text,expected",
    [
        ("", {}),
        ("\n  \n# cat\n", {}),
        ("cat", {"cat": 1.0}),
        ("  cat  ", {"cat": 1.0}),
        ("cat: 0.8", {"cat": 0.8}),
        ("cat:0.8", {"cat": 0.8}),
        ("cat : -1e-1 # less", {"cat": -0.1}),
        ("dog\r\ncat: 2", {"dog": 1.0, "cat": 2.0}),
        ("cat: 0", {}),
        ("red: car: 0.5", {"red: car": 0.5}),
        ("L\u00f3ve \u2764: 0.5", {"L\u00f3ve \u2764": 0.5}),
        ("Lo\u0301ve \u2764", {"L\u00f3ve \u2764": 1.0}),  # as some keyboards write it
        ("*", dict.fromkeys(KNOWN, 1.0)),
        ("*: 0.5", dict.fromkeys(KNOWN, 0.5)),
        ("*: 0.5\ncat: 1", dict.fromkeys(KNOWN, 0.5) | {"cat": 1.0}),
        ("cat: 1\n*: 0.5", dict.fromkeys(KNOWN, 0.5) | {"cat": 1.0}),
        ("*\ncat: 0", {name: 1.0 for name in KNOWN if name != "cat"}),
        ("*: 0\ndog", {"dog": 1.0}),
        ("DOG: 0.5\n Cat", {"cat": 1.0, "dog": 0.5}),
        ("cat\uff1a0.5\ndog \uff1a .5\u3000", {"cat": 0.5, "dog": 0.5}),  # the colon and the space of Chinese keyboards
    ],
)
def test_selection(text, expected):
    assert parse_selection(text, KNOWN) == expected


@pytest.mark.parametrize(
    "text,sentence",
    [
        ("bird", "no concept 'bird' in this library; it has: cat, dog"),
        ("cart", "no concept 'cart'"),
        ("Cat\ncat: 0.5", "'cat' is selected twice"),
        ("cat\ncat: 0.5", "'cat' is selected twice"),
        (
            "cat: strong",
            "'cat: strong' has no usable strength after the colon; write a number from -100 to 100",
        ),
        ("cat:", "'cat:' has no usable strength"),
        ("cat: nan", "no usable strength"),
        ("cat: inf", "no usable strength"),
        ("cat: 1e9", "no usable strength"),
        ("cat: 1_0", "no usable strength after the colon; write a number from -100 to 100"),
        ("cat: \uff10.\uff15", "no usable strength"),
        ("<lora:cat:0.8>", "'<lora:cat:0.8>' is a tag for prompts; here write 'cat: 0.8'"),
        ("<lora:cat>", "here write 'cat'"),
        ("../cat", "no concept '../cat'"),
        ("*: 1\n*: 2", "'\\*' is selected twice"),
    ],
)
def test_selection_that_is_no_selection(text, sentence):
    with pytest.raises(SeqLoRAError, match=sentence):
        parse_selection(text, KNOWN)


def test_auto_is_what_the_prompt_names():
    prompted = {"cat": 0.5, "dog": 1.0}
    assert parse_selection("auto", KNOWN, prompted) == prompted
    assert parse_selection("auto: 0.8 # weaker", KNOWN, prompted) == {"cat": 0.4, "dog": 0.8}
    assert parse_selection("auto\ndog: 0", KNOWN, prompted) == {"cat": 0.5}
    assert parse_selection("*: 0.2\nauto", ["cat", "dog", "cow"], prompted) == {"cat": 0.5, "dog": 1.0, "cow": 0.2}
    assert parse_selection("auto", KNOWN, {}) == {}
    assert parse_selection("auto", ["auto", "cat"], prompted) == {"auto": 1.0}  # a concept of this name is meant
    with pytest.raises(SeqLoRAError, match="'auto' are the concepts that the prompt names, and there is none here"):
        parse_selection("auto", KNOWN)
    with pytest.raises(SeqLoRAError, match="'auto' is selected twice"):
        parse_selection("auto\nauto: 1", KNOWN, {})


def test_unknown_names_in_an_empty_library():
    with pytest.raises(SeqLoRAError, match="it has: none yet"):
        parse_selection("cat", [])
