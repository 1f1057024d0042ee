"""What bad input gets: one sentence that says what was found and where, before any long work, with nothing written.

One test for each kind of input that a person can get wrong and that needs no checkpoint.
"""

import shutil
from dataclasses import dataclass, field

import pytest
import torch

from seqlora.errors import SeqLoRAError
from seqlora.io.names import checked_name
from seqlora.library.store import Library
from seqlora.lora.compose import parse_selection
from seqlora.settings import Settings
from seqlora.training.progress import run_to_end
from seqlora.training.request import TrainingRequest
from seqlora.training.train import train_steps
from tests.support.small import (
    QUICK,
    Exploding,
    SmallDenoiser,
    SmallModel,
    contents,
    full_library,
    rewrite,
    small_pictures,
    small_request,
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return full_library(tmp_path_factory.mktemp("models") / "pets", SmallModel()).path


@pytest.fixture
def library(taught, tmp_path):
    shutil.copytree(taught, tmp_path / "pets")
    return Library.open(tmp_path / "pets")


@dataclass
class Request:
    """A fifth concept for a library of four: good as it is, until a test spoils one part."""

    lesson: TrainingRequest = field(default_factory=lambda: small_request("bird", 2))
    settings: Settings = QUICK
    model: SmallModel = field(default_factory=SmallModel)


def with_picture(picture):
    """Three pictures, the second of which is this one."""
    pictures = small_pictures(2)
    pictures[1] = picture
    return Request(small_request("bird", pictures=pictures))


def with_pixel(value):
    picture = small_pictures(2)[1].clone()
    picture[3, 4, 0] = value
    return with_picture(picture)


class BlindModel(SmallModel):
    """Whose VAE overflows, as SDXL's does in fp16."""

    def encode_pictures(self, pictures):
        first, *rest = super().encode_pictures(pictures)
        return [first, *(latent * float("nan") for latent in rest)]


EARLY = {
    "no images": (lambda: Request(small_request("bird", pictures=[])), "There are no pictures; connect at least one image"),
    "NaN image": (lambda: with_pixel(float("nan")), "Picture 2 holds values that are not numbers; replace it"),
    "infinite image": (lambda: with_pixel(float("inf")), "Picture 2 holds values that are not numbers"),
    "black image": (lambda: with_picture(torch.zeros(24, 24, 3)), "Picture 2 is one flat colour; replace it"),
    "image with alpha": (
        lambda: with_picture(torch.rand(24, 24, 4)),
        r"Picture 2 has shape \(24, 24, 4\); pictures must be RGB",
    ),
    "tiny image": (lambda: with_picture(torch.rand(24, 4, 3)), r"Picture 2 has shape \(24, 4, 3\).* at least 16 pixels a side"),
    "VAE puts out NaN": (
        lambda: Request(model=BlindModel()),
        "Picture 2 was encoded to values that are not numbers; run the VAE",
    ),
    "too few captions": (
        lambda: Request(small_request("bird", captions=("a zyx", "zyx"))),
        "There are 2 captions for 3 pictures; give one caption per picture, or none",
    ),
    "empty name": (lambda: Request(small_request("  ")), "The concept name is empty; give it a name"),
    "duplicate name": (
        lambda: Request(small_request("Cat", 2)),
        "Library 'pets' has a concept 'Cat' already; choose another name",
    ),
    "path-like name": (lambda: Request(small_request("../cat")), "The concept name '../cat' .*; use letters"),
    "name with a slash": (lambda: Request(small_request("a/b")), "The concept name 'a/b' contains '/'; use letters"),
    "empty trigger": (lambda: Request(small_request("bird", trigger=" ")), "The trigger is empty; give a made-up word"),
    "library of another base": (
        lambda: Request(model=SmallModel(width=48)),
        r"'pets' belongs to another model \(other\): layer diffusion_model.blocks.0.attn_q is 48 x 48 here, 32 x 32 there",
    ),
    "full capacity, fallback off": (
        lambda: Request(settings=QUICK.with_(when_full="refuse")),
        r"The library is full: 6 layers \(first diffusion_model.blocks.0.attn_q\) have no room.*; set when_full to metric",
    ),
}


def refused(library, request, sentence):
    """Runs a request that must fail; returns how often the model ran until it did."""
    before, forwards = contents(library.path), []
    handle = request.model.denoiser.net.register_forward_hook(lambda *_: forwards.append(1))
    with pytest.raises(SeqLoRAError, match=sentence) as found:
        run_to_end(train_steps(library, request.lesson, request.settings, request.model))
    handle.remove()
    text = str(found.value)
    assert text.endswith(".") and "\n" not in text
    assert contents(library.path) == before
    assert not any(layer._forward_hooks for layer in request.model.layers(library.targets).values())
    with library.writing():  # the lock is free again
        pass
    return len(forwards)


@pytest.mark.parametrize("make,sentence", EARLY.values(), ids=EARLY)
def test_refused_before_any_work(library, make, sentence):
    assert refused(library, make(), sentence) == 0


def test_the_request_is_good_otherwise(library):
    taught = run_to_end(train_steps(library, Request().lesson, QUICK, Request().model))
    assert taught.library.names == ["cat", "dog", "elk", "fox", "bird"]
    assert len(taught.record.full_layers) == 6 == taught.report.full_layers  # the fallback is on, and is recorded


def test_loss_that_is_no_number(library):
    request = Request()
    request.model.denoiser = Exploding()
    sentence = r"The loss was no longer a number at step \d+; lower learning_rate \(now 0.01\) or check the pictures"
    assert refused(library, request, sentence) < 10 + QUICK.steps


def test_out_of_memory(library):
    class Hungry(SmallDenoiser):
        """Fails as a full GPU does: at the first pass that keeps activations for the gradient."""

        def __call__(self, x, sigma, cond):
            if torch.is_grad_enabled():
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return super().__call__(x, sigma, cond)

    request = Request()
    request.model.denoiser = Hungry()
    refused(library, request, r"ran out of memory; lower batch_size \(now 8\), the pictures' size or the library's rank")


UP, DOWN = (f"diffusion_model.blocks.1.attn_k.lora_{side}.weight" for side in ("up", "down"))

FILES = {
    "shapes": (lambda t: t.update({UP: t[UP][:-1]}), "layer diffusion_model.blocks.1.attn_k does not fit this library's model"),
    "dtype": (lambda t: t.update({UP: t[UP].int(), DOWN: t[DOWN].int()}), "has dtype torch.int32; it must be float32"),
    "orthogonality": (lambda t: t.update({DOWN: t[DOWN] + 0.01}), "the basis of layer .*attn_k is not orthonormal"),
}


@pytest.mark.parametrize("change,sentence", FILES.values(), ids=FILES)
def test_a_wrong_concept_file(library, change, sentence):
    spoilt = rewrite(library, "cat", change)
    assert_only_the_cat_is_lost(spoilt, sentence)


def test_a_concept_file_of_another_hash(library):
    file = library.path / library.find("cat").file
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    assert_only_the_cat_is_lost(library, "was changed since it was written; restore it from a copy, or remove concept 'cat'")


def assert_only_the_cat_is_lost(library, sentence):
    with pytest.raises(SeqLoRAError, match=sentence) as found:
        library.compose(parse_selection("*", library.names))
    assert str(library.path / "concepts" / "0001-cat.safetensors") in str(found.value)
    assert library.compose({"dog": 1.0})
    assert refused(library, Request(), sentence) == 0  # nor is anything taught beside a file that cannot be trusted


@pytest.mark.parametrize("name", ["..", "../other", "/tmp/other", "a\\..\\b", "C:\\x", "con", "\u2025", "a\x00b"])
def test_library_names_that_would_leave_the_folder(tmp_path, name):
    with pytest.raises(SeqLoRAError, match="^The library name "):
        Library.create(tmp_path / checked_name(name, "library name"), 4, 4, "attention")
    assert not list(tmp_path.iterdir())


def test_an_unknown_concept(library):
    with pytest.raises(SeqLoRAError, match="There is no concept 'brid' in this library; it has: cat, dog"):
        parse_selection("cat\nbrid: 0.5", library.names)


def test_a_model_without_attention(tmp_path):
    model, library = SmallModel(), Library.create(tmp_path / "new", 4, 4, "attention")
    model.denoiser.net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(SeqLoRAError, match="No attention layers were found in this model; use a diffusion model"):
        run_to_end(train_steps(library, small_request("bird"), QUICK, model))
