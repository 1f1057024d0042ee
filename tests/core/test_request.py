"""What is asked for, before anything is done: words, captions, pictures, and what the text encoder sees of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from seqlora.diffusion.fingerprint import weights_hash
from seqlora.diffusion.model import NO_TRIGGERS
from seqlora.errors import SeqLoRAError
from seqlora.library.manifest import MAX_TEXT, Base, Record
from seqlora.library.store import Library
from seqlora.settings import method_settings
from seqlora.training.encoding import seen_captions
from seqlora.training.progress import run_to_end
from seqlora.training.remarks import of_base, of_shared, of_words
from seqlora.training.request import TrainingRequest, check_request, fit_pictures, prepare_captions
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, small_library, small_pictures, small_request

ZORV = {"trigger": "zorv", "class_word": "dog"}
CHINESE = {"trigger": "\u4f50\u5c14\u592b", "class_word": "\u72d7"}


def captions(*given: str, **words: str) -> tuple[list[str], int]:
    return prepare_captions(small_request("a", captions=given, pictures=[None] * max(len(given), 1), **(words or ZORV)))


# -- captions


@pytest.mark.parametrize(
    "caption",
    [
        "a zorv dog",
        "Zorv!",
        "(zorv)",
        "zorv, blue hair",
        "zorv_dog",
        "a ZORV\u2019s ball",
        "zorv:1.2",
        "-zorv-",
        "\u4e00\u53eazorv\u72d7",  # a script without spaces around it
        "\u72d7zorv",
        "zorv\u306e\u72ac",
        "zorv\uc740 \uac1c",
        "\u0e2b\u0e21\u0e32zorv",
    ],
)
def test_a_caption_with_the_trigger_is_taken_as_it_is(caption: str):
    assert captions(caption) == ([caption], 0)


@pytest.mark.parametrize("caption", ["a dog", "zorv2", "zorvian", "azorv", "zor v"])
def test_a_caption_without_it_gets_it_in_front(caption: str):
    assert captions(caption) == ([f"zorv {caption}"], 1)


@pytest.mark.parametrize(
    "caption,words",
    [
        ("\u4e00\u53ea\u4f50\u5c14\u592b\u72d7", CHINESE),  # no spaces in this script
        ("\u4f50\u5c14\u592b", CHINESE),
        ("a zoe\u0301 dog", {"trigger": "zo\u00e9", "class_word": "dog"}),  # the same letter in two ways
        ("a zo\u00e9 dog", {"trigger": "zo\u00e9", "class_word": "dog"}),
        ("\uc870\ub974\ube0c\ub294 \uac1c", {"trigger": "\uc870\ub974\ube0c", "class_word": "\uac1c"}),  # with an ending
        ("\u4f50\u3005\u6728", {"trigger": "\u4f50\u3005", "class_word": "\u72d7"}),
        ("\uff7f\uff9e\uff99\uff8c\uff9e\u72ac", {"trigger": "\uff7f\uff9e\uff99\uff8c\uff9e", "class_word": "\u72ac"}),
        ("\u30be\u30eb\u30d6\u306e\u72ac", {"trigger": "\u30be\u30eb\u30d6", "class_word": "\u72ac"}),
    ],
)
def test_the_trigger_is_found_in_any_script(caption: str, words: dict):
    assert captions(caption, **words)[1] == 0


@pytest.mark.parametrize("empty", ["", " ", "\ufeff", "\n", "\u200b"])
def test_an_empty_caption_is_none_for_its_picture(empty: str):
    assert captions("a zorv dog", empty) == (["a zorv dog", "a photo of zorv dog"], 0)
    assert captions(empty, empty) == (["a photo of zorv dog"] * 2, 0)


@pytest.mark.parametrize(
    "given,meant",
    [
        (r"zorv_\(vocaloid\), blue", "zorv_(vocaloid), blue"),
        ("zorv_(vocaloid)", "zorv_(vocaloid)"),
        ("(zorv:0)", "(zorv:0)"),
        ("zorv :)", "zorv :)"),
        (r"zorv \o/ \n", r"zorv \o/ \n"),
        (r"\(\(zorv\)", "((zorv)"),
    ],
)
def test_parentheses_are_what_they_are(given: str, meant: str):
    assert captions(given) == ([meant], 0)


def test_what_nobody_typed_is_taken_out():
    assert captions("\ufeffa zorv\u200b dog") == (["a zorv dog"], 0)


# -- refusals


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"trigger": "x" * (MAX_TEXT + 1)}, "The trigger has 1001 characters, at most 1000"),
        ({"class_word": "x" * 5000}, "The class word has 5000 characters"),
        ({"trigger": "zo\ud83d"}, "The trigger holds half a character"),
        ({"class_word": "\udc00"}, "The class word holds half a character"),
        ({"captions": ["a", "b\ud83d", "c"]}, "The caption of picture 2 holds half a character"),
        ({"trigger": "\ufeff \u200b"}, "The trigger is empty"),
        ({"pictures": [torch.rand(24, 24, 3) * 255]}, "Picture 1 has values from .* but 0 to 1 are expected"),
        ({"pictures": [torch.rand(24, 24, 3) * 2 - 1]}, "Picture 1 has values from -"),
        ({"pictures": [torch.rand(24, 24, 4)]}, "Picture 1 has shape"),
        (
            {"pictures": [torch.rand(24, 24, 3), torch.full((24, 24, 3), torch.inf)]},
            "Picture 2 holds values that are not",
        ),
    ],
)
def test_what_cannot_be_taught_is_refused_before_any_work(tmp_path, changes: dict, sentence: str):
    library = small_library(tmp_path / "pets", SmallModel())
    with pytest.raises(SeqLoRAError, match=sentence):
        next(train_steps(library, small_request("bird", **changes), QUICK, SmallModel()))


def test_the_ringing_of_a_resize_is_no_fault():
    picture = torch.rand(24, 24, 3)
    picture[0, 0], picture[1, 1] = -0.05, 1.05
    checked = check_request(small_request("a", pictures=[picture])).pictures[0]
    assert checked.min() == 0 and checked.max() == 1


def test_pictures_of_far_more_pixels_than_the_model_takes_are_scaled_down():
    pictures = [torch.rand(768, 1024, 3), torch.rand(64, 64, 3), torch.rand(40, 4000, 3), torch.rand(90, 90, 3)]
    fitted, said = fit_pictures(small_request("a", pictures=pictures), 64)
    assert [tuple(picture.shape[:2]) for picture in fitted.pictures] == [(56, 72), (64, 64), (48, 88), (90, 90)]
    assert fitted.pictures[1] is pictures[1] and said.startswith("2 of 4 pictures have far more pixels than this model takes")
    assert "1024 x 768 to 72 x 56" in said and fit_pictures(small_request("a", pictures=pictures[1:2]), 64)[1] == ""


# -- what the text encoder sees


class ShortSighted(SmallModel):
    """A text encoder that reads so many words, and some not at all."""

    def __init__(self, words: int, blind: str = ""):
        super().__init__()
        self.words, self.blind = words, blind

    def encode_captions(self, captions, triggers=NO_TRIGGERS):
        read = [" ".join([word for word in caption.split() if word != self.blind][: self.words]) for caption in captions]
        return super().encode_captions(read)


LONG = "a picture of many things that somebody has listed one after the other beside a zorv dog"


def test_a_trigger_behind_the_window_is_put_in_front():
    request = small_request("a", pictures=small_pictures(0, 2), captions=[LONG, "a zorv dog"], **ZORV)
    model = ShortSighted(12)
    captions, said = seen_captions(model, request)
    assert said.startswith("In 1 captions the trigger stood behind what the text encoder reads")
    assert captions == [f"zorv {LONG}", "a zorv dog"]
    assert seen_captions(SmallModel(), request)[1] == ""


def test_a_trigger_that_the_encoder_drops_is_refused(tmp_path):
    library = small_library(tmp_path / "pets", SmallModel())
    steps = train_steps(library, small_request("bird", **ZORV), QUICK, ShortSighted(20, "zorv"))
    with pytest.raises(SeqLoRAError, match="The text encoder does not see the trigger 'zorv'.*choose a word of plain letters"):
        run_to_end(steps)


def test_the_demo_models_window_is_noticed():
    pytest.importorskip("diffusers")
    from seqlora.demo.demo_model import DemoModel

    request = small_request("a", pictures=small_pictures(0, 1), captions=[" ".join(["word"] * 90 + ["zorv"])], **ZORV)
    assert seen_captions(DemoModel(), request)[1].startswith("In 1 captions")


# -- remarks


def record(trigger: str, class_word: str) -> Record:
    return Record(1, "rex", trigger, class_word, "concepts/1.safetensors", "", "", "", "", [], {}, {})


@pytest.mark.parametrize(
    "words,others,said",
    [
        (ZORV, [], []),
        (ZORV, [("Zorv", "dog")], ["is that of concept 'rex' already"]),
        ({"trigger": "Dog", "class_word": "animal"}, [("x", "small dog")], ["is the class word of concept 'rex'"]),
        ({"trigger": "dog", "class_word": "dog"}, [], ["is the class word, which means something already"]),
        ({"trigger": "zorv", "class_word": ""}, [], ["There is no class word"]),
        ({"trigger": "zorv2", "class_word": "dog"}, [], ["has digits"]),
    ],
)
def test_words_that_will_cause_trouble_are_remarked_on(words: dict, others: list, said: list[str]):
    remarks = of_words(small_request("a", **words), [record(*other) for other in others])
    assert len(remarks) == len(said) and all(part in remark for part, remark in zip(said, remarks, strict=True))


@pytest.mark.parametrize(
    "pieces,said",
    [
        (0, ""),
        (1, "is a word that the text encoder knows already"),
        (2, ""),
        (8, ""),
        (9, "falls into 9 pieces for the text"),
    ],
)
def test_a_trigger_that_is_a_word_or_many_pieces_is_told(pieces: int, said: str):
    found = of_words(small_request("a", **ZORV), [], pieces)
    assert [remark for remark in found if said in remark] == found and bool(found) == bool(said)


def test_the_demo_model_knows_its_words():
    pytest.importorskip("diffusers")
    from seqlora.demo.demo_model import DemoModel

    assert [DemoModel().pieces(word) for word in ("dog", "Dog", "zorv", "red dog")] == [1, 1, 0, 0]


def test_one_trigger_for_concepts_that_are_used_together_is_told():
    twins = [record("zorv", "dog"), replace(record("Zorv", "cat"), name="tom"), replace(record("mivu", "owl"), name="owl")]
    assert of_shared(twins) == "rex and tom have one trigger, 'zorv': in a prompt it means all of them."
    learned = [replace(one, settings={"trigger_vectors": count}) for one, count in zip(twins, (2, 4, 1), strict=True)]
    assert of_shared(learned) == (
        "rex and tom have one trigger, 'zorv': in a prompt it means all of them with the vectors of tom."
    )
    assert of_shared(twins[1:]) == of_shared([]) == ""


def test_a_trigger_with_vectors_that_another_has_too_is_told(tmp_path):
    rex = replace(record("zorv", "dog"), settings={"trigger_vectors": 2})
    said = of_words(small_request("a", **ZORV), [rex])
    assert said == [
        "The trigger 'zorv' is that of concept 'rex' already: in a prompt it means both, with the vectors of the one that was "
        "taught last. Give each its own."
    ]


def test_a_remark_is_told_before_and_kept(tmp_path):
    library = small_library(tmp_path / "pets", SmallModel())
    told = []
    taught = run_to_end(
        train_steps(library, small_request("bird", trigger="zyxcat"), QUICK, SmallModel()),
        lambda progress: told.append(progress),
    )
    assert "is that of concept 'cat' already" in told[0].note and told[0].step == 0
    assert "is that of concept 'cat' already" in taught.report.note


def test_another_model_than_the_librarys_is_told_and_kept(tmp_path):
    library, model = small_library(tmp_path / "pets", SmallModel()), SmallModel()
    told = []
    run_to_end(train_steps(library, small_request("bird"), QUICK, model), told.append)
    assert "another model" not in told[0].note
    model.fingerprint = "a fine-tune"
    library = Library.open(library.path)
    taught = run_to_end(train_steps(library, small_request("elk"), QUICK, model), told.append)
    said = "Library 'pets' was taught on another model than this one: another fine-tune or precision, or other LoRAs"
    assert said in taught.report.note and any(said in progress.note and progress.step == 0 for progress in told)


def test_what_can_be_applied_is_known_by_either_of_its_fingerprints():
    base = Base({"family": "other"}, {"a": [1, 1]}, "bare")
    assert of_base("pets", base, "with a LoRA", "bare") == of_base("pets", base, "bare") == of_base("pets", None, "x") == ""
    assert of_base("pets", base, "with a LoRA", "other").startswith("Library 'pets' was taught on another model")


# -- the same request


@pytest.mark.parametrize("part", ["model", "sampling", "text encoder", "VAE"])
def test_whatever_decides_the_result_makes_another_request(tmp_path, part: str):
    parts = {"model": "a", "sampling": "b", "text encoder": "c", "VAE": "d"}
    library, model, other = small_library(tmp_path / "pets", SmallModel()), SmallModel(), SmallModel()
    model.parts, other.parts = parts, parts | {part: "changed"}
    library = run_to_end(train_steps(library, small_request("bird"), QUICK, model)).library
    assert run_to_end(train_steps(library, small_request("bird"), QUICK, model)).reused
    with pytest.raises(SeqLoRAError, match=f"has a concept 'bird' already, taught with another {part}; choose another name"):
        run_to_end(train_steps(library, small_request("bird"), QUICK, other))
    anew = run_to_end(train_steps(library, small_request("bird"), QUICK, other, replace=True))
    assert not anew.reused and anew.library.names == ["cat", "dog", "bird"]


def turned(request: TrainingRequest) -> list[torch.Tensor]:
    return [request.pictures[0].transpose(0, 1).contiguous(), *request.pictures[1:]]


def a_shade_brighter(request: TrainingRequest) -> list[torch.Tensor]:
    picture = (request.pictures[0] * 255).round() / 255
    picture[3, 4, 0] += 1 / 255 if picture[3, 4, 0] < 1 else -1 / 255
    return [picture, *request.pictures[1:]]


GIVEN = {"captions": ["a zyxbird (thing)", "zyxbird", ""]}
SAME = {
    "a caption with a space behind it": ({"captions": ["a zyxbird (thing) ", "zyxbird", " "]}, QUICK),
    "a caption with invisible characters": ({"captions": ["\ufeffa zyx\u200bbird (thing)", "zyxbird\n", "\u200b"]}, QUICK),
    "parentheses as prompts have them": ({"captions": [r"a zyxbird \(thing\)", "zyxbird", ""]}, QUICK),
    "the default caption written out": ({"captions": [*GIVEN["captions"][:2], "a photo of zyxbird thing"]}, QUICK),
    "a class word with spaces around it": ({"class_word": " thing\t"}, QUICK),
    "a seed as a float": ({}, QUICK.with_(seed=0.0)),
    "a rate for vectors where there are none": ({}, QUICK.with_(trigger_learning_rate=0.5)),
}
OTHERWISE = {
    "the pictures in another order": (lambda r: {"pictures": r.pictures[::-1]}, QUICK, "pictures or captions"),
    "a picture on its side": (lambda r: {"pictures": turned(r)}, QUICK, "pictures or captions"),
    "one pixel a shade brighter": (lambda r: {"pictures": a_shade_brighter(r)}, QUICK, "pictures or captions"),
    "a picture more": (lambda r: {"pictures": small_pictures(0, 4), "captions": ()}, QUICK, "pictures or captions"),
    "captions in another order": (lambda r: {"captions": r.captions[::-1]}, QUICK, "pictures or captions"),
    "a caption in capitals": (lambda r: {"captions": ["A Zyxbird (thing)", "zyxbird", ""]}, QUICK, "pictures or captions"),
    "a trigger in capitals": (lambda r: {"trigger": "Zyxbird"}, QUICK, "pictures or captions and trigger"),
    "another class word": (lambda r: {"class_word": "bird"}, QUICK, "pictures or captions and class word"),
    "another seed": (lambda r: {}, QUICK.with_(seed=1), "settings"),
    "another method": (lambda r: {}, method_settings("lora", QUICK), "settings"),
}


@pytest.fixture(scope="module")
def with_bird(tmp_path_factory) -> Library:
    """A library in which `bird` was taught with captions, and another concept after it."""
    library, model = small_library(tmp_path_factory.mktemp("same") / "pets", SmallModel()), SmallModel()
    for request in (small_request("bird", **GIVEN), small_request("elk", 5)):
        library = run_to_end(train_steps(library, request, QUICK, model)).library
    return library


@pytest.mark.parametrize("what", SAME)
def test_what_means_the_same_is_found_again(with_bird, what: str):
    """Whatever else the library holds by now."""
    changes, settings = SAME[what]
    again = run_to_end(train_steps(with_bird, small_request("bird", **{**GIVEN, **changes}), settings, SmallModel()))
    assert again.reused and again.library.names == ["cat", "dog", "bird", "elk"]


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_means_something_else_is_not(with_bird, what: str):
    changes, settings, part = OTHERWISE[what]
    request = small_request("bird", **GIVEN)
    with pytest.raises(SeqLoRAError, match=f"has a concept 'bird' already, taught with another {part}; choose another name"):
        run_to_end(train_steps(with_bird, replace(request, **changes(request)), settings, SmallModel()))


def test_a_concept_that_was_removed_and_taught_otherwise_is_not_the_one_before(tmp_path):
    library, model = small_library(tmp_path / "pets", SmallModel()), SmallModel()
    with library.writing() as writer:
        library = writer.remove("cat")
    other = run_to_end(train_steps(library, small_request("cat", 7), QUICK, model))
    with pytest.raises(SeqLoRAError, match="taught with another pictures or captions"):
        run_to_end(train_steps(other.library, small_request("cat", 0), QUICK, model))


def test_a_taken_name_says_in_what_the_request_differs(tmp_path):
    library = small_library(tmp_path / "pets", SmallModel())
    with pytest.raises(SeqLoRAError, match="'cat' already, taught with another pictures or captions and settings;"):
        run_to_end(train_steps(library, small_request("cat", 9), QUICK.with_(steps=13), SmallModel()))


def test_every_tensor_counts_in_a_hash_of_weights():
    weights = {"a": torch.arange(1000.0), "b": torch.ones(3, 5), "c": torch.zeros(0), "d": torch.arange(7).to(torch.bfloat16)}
    before = weights_hash(weights.items())
    assert weights_hash(weights.items()) == before != weights_hash(weights.items(), "more")
    for name, tensor in weights.items():
        if tensor.numel():
            changed = {**weights, name: tensor + 1}
            assert weights_hash(changed.items()) != before
    assert weights_hash([("a", torch.empty(3, device="meta"))]) != weights_hash([("b", torch.empty(3, device="meta"))])
