"""Teaching a concept into a library, from pictures to file: what the node and the command line share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import checkpoint as checkpoints
from . import metrics
from .adapter import layer_shapes
from .checkpoint import FOLDER, MINUTES, Checkpoint, State
from .errors import SeqLoRAError
from .library import Base, Library, Record, Turn, request_hash
from .moments import Moments
from .names import checked_name
from .objective import Denoiser, Examples
from .settings import Settings
from .thumbnails import encode
from .trainer import Progress, Steps, check_latents, measure_prior, memory_advice, train_concept

MIN_SIDE = 16  # pixels
GENERIC_CAPTIONS = (
    "a photo of a person",
    "a portrait of a woman",
    "a portrait of an old man",
    "a child playing in a park",
    "a group of people",
    "a man walking on a street",
    "a woman reading a book in a cafe",
    "a crowd at a concert",
    "a couple dancing",
    "a football player on a field",
    "a doctor in a hospital",
    "a worker with a helmet",
    "a close-up of two hands",
    "a dress on a hanger",
    "a pair of shoes",
    "a red jacket",
    "a photo of a dog",
    "a photo of a cat",
    "a bird on a branch",
    "a horse in a field",
    "an elephant by a river",
    "a fish in clear water",
    "a butterfly on a leaf",
    "a herd of sheep",
    "a bear in the forest",
    "a car on a road",
    "a train at a station",
    "a bicycle against a wall",
    "an airplane in the sky",
    "a ship at sea",
    "a motorcycle in a garage",
    "a bus in the rain",
    "a house with a garden",
    "a castle on a hill",
    "a skyscraper made of glass",
    "an old church",
    "a bridge over a river",
    "a living room with a sofa",
    "a kitchen with a window",
    "a bedroom at night",
    "an office with desks",
    "a library full of books",
    "a landscape with mountains",
    "a beach at sunset",
    "a forest in autumn",
    "a desert under a blue sky",
    "a snowy field",
    "a waterfall",
    "a lake in the morning mist",
    "a city at night",
    "a market street",
    "the moon above clouds",
    "a plate of food",
    "a bowl of fruit",
    "a slice of cake",
    "a cup of coffee",
    "a loaf of bread on a board",
    "a bottle of wine and a glass",
    "a pizza",
    "vegetables on a table",
    "a toy on a table",
    "a teddy bear",
    "a wooden chair",
    "a lamp on a desk",
    "a clock on a wall",
    "a vase with flowers",
    "a backpack",
    "a guitar",
    "a piano in a hall",
    "a camera",
    "a laptop and a phone",
    "a robot",
    "a sword and a shield",
    "a gold ring",
    "a candle in the dark",
    "a pile of old books",
    "an object on a white background",
    "a bunch of balloons",
    "an umbrella",
    "a key on a string",
    "a flower in the sun",
    "a tree on a hill",
    "grass and wild flowers",
    "a cactus in a pot",
    "mushrooms on the ground",
    "a painting of a boat",
    "an oil painting of a village",
    "a watercolor of a garden",
    "a pencil drawing of a face",
    "a black and white photo of a street",
    "an anime girl with blue hair",
    "a cartoon of a happy animal",
    "a 3d render of a room",
    "a logo with a star",
    "an abstract pattern of lines and colors",
    "a dragon flying over a city",
)


class Model(Protocol):
    """A text-to-image model as a host gives it to us."""

    denoiser: Denoiser
    layout: Mapping[str, Any]  # see keys.py
    fingerprint: str
    generic_captions: Sequence[str]  # that stand for everything else the model can draw

    def layers(self, targets: str) -> dict[str, nn.Module]: ...

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Pictures (h, w, 3) in 0..1 -> latents (c, h', w') as the denoiser sees them."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> list[Any]:
        """Captions -> conditionings that the denoiser takes."""
        ...


@dataclass(frozen=True)
class Lesson:
    """What is to be taught. Pictures are (h, w, 3) in 0..1; without captions `a photo of {trigger} {class word}` is used."""

    name: str
    trigger: str
    class_word: str
    pictures: Sequence[Tensor]
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class Taught:
    library: Library
    record: Record
    losses: Sequence[float]
    report: Mapping[str, Any]
    reused: bool = False  # the same request had been taught before

    @classmethod
    def again(cls, library: Library, record: Record) -> Taught:
        """What is known of a concept that was taught earlier: its losses as `thinned` left them."""
        figures = dict(record.metrics)
        losses = figures.pop("losses", [])
        return cls(library, record, losses, figures | {"reused": True}, reused=True)


def prepare_captions(lesson: Lesson) -> tuple[list[str], int]:
    """One caption per picture, each with the trigger in it; also how often it had to be put in front."""
    subject = f"{lesson.trigger} {lesson.class_word}".strip()
    if not lesson.captions:
        return [f"a photo of {subject}"] * len(lesson.pictures), 0
    if len(lesson.captions) != len(lesson.pictures):
        raise SeqLoRAError(
            f"There are {len(lesson.captions)} captions for {len(lesson.pictures)} pictures; "
            "give one caption per picture, or none."
        )
    prepared, added = [], 0
    for caption in lesson.captions:
        if re.search(rf"(?<!\w){re.escape(lesson.trigger)}(?!\w)", caption, re.IGNORECASE):
            prepared.append(caption.strip())
        else:
            prepared.append(f"{lesson.trigger} {caption.strip()}".strip())
            added += 1
    return prepared, added


def check_lesson(lesson: Lesson) -> Lesson:
    """The lesson with clean names. Raises SeqLoRAError, before any long work, for what cannot be taught."""
    name = checked_name(lesson.name, "concept name")
    trigger = lesson.trigger.strip()
    if not trigger:
        raise SeqLoRAError("The trigger is empty; give a made-up word that stands for the concept in prompts.")
    if not lesson.pictures:
        raise SeqLoRAError("There are no pictures; connect at least one image.")
    for number, picture in enumerate(lesson.pictures, 1):
        if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < MIN_SIDE:
            raise SeqLoRAError(
                f"Picture {number} has shape {tuple(picture.shape)}; pictures must be RGB, at least {MIN_SIDE} pixels a side."
            )
        if not torch.isfinite(picture).all():
            raise SeqLoRAError(f"Picture {number} holds values that are not numbers; replace it.")
        if float(picture.max() - picture.min()) < 1 / 255:
            raise SeqLoRAError(f"Picture {number} is one flat colour; replace it.")
    lesson = Lesson(name, trigger, lesson.class_word.strip(), lesson.pictures, tuple(lesson.captions))
    prepare_captions(lesson)
    return lesson


def data_hash(lesson: Lesson) -> str:
    digest = hashlib.sha256()
    for picture, caption in zip(lesson.pictures, prepare_captions(lesson)[0], strict=True):
        digest.update(f"{tuple(picture.shape)} {caption}\n".encode())
        digest.update((picture * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def teach(
    library: Library,
    lesson: Lesson,
    settings: Settings,
    model: Model,
    checkpoint_minutes: float = MINUTES,
    replace: bool = False,
) -> Steps[Taught]:
    """Teaches a concept and files it; a request that was taught before is found again, one that was cancelled goes on.

    Waits while another training writes to the library. Sending "keep" ends the training and files the concept as it is. Closing
    the generator leaves model and library as they were, and a checkpoint; so does whatever goes wrong after the first step.
    Checkpoints are also written every `checkpoint_minutes`, unless that is 0. With `replace` a concept of that name is taught
    anew, beside all the others, and stays until the new version is filed. Raises SeqLoRAError with nothing else written.
    """
    lesson = check_lesson(lesson)
    layers = model.layers(library.targets)
    shapes = {name: list(shape) for name, shape in layer_shapes(layers).items()}
    library.check_base(shapes)
    asked = (data_hash(lesson), lesson.trigger, lesson.class_word, asdict(settings))
    request = request_hash(*asked, library.rank, library.capacity, model.fingerprint)
    turn = Turn(library.path)
    while not turn.comes(within=0.5):
        yield Progress("waiting for another training", 0, 1)
    with turn as library:
        replaces = lesson.name if replace and lesson.name in library.names else None
        others = library.without(replaces) if replaces else library
        # Not their files' hashes: those change with a name. What was taught anew has another time.
        beside = [(record.id, record.created, record.request, record.moments_sha256) for record in others.concepts]
        binding = request_hash(request, beside, shapes)
        checkpoint = Checkpoint(library.path / FOLDER / f"{request}.safetensors", binding, checkpoint_minutes)
        for record in library.concepts:
            if record.name == lesson.name and record.request == request:
                checkpoint.remove()  # left by a process that died right after it had filed the concept
                return Taught.again(library, record)
        others.free_name(lesson.name)
        library.check_base(shapes)
        note = " ".join(filter(None, (checkpoint.open(), beyond_plan(len(others.concepts) + 1, library.capacity))))
        if note:
            yield Progress("measuring", 0, 1, note=note)
        if checkpoint.step is not None:
            yield Progress("training", checkpoint.step, settings.steps, note=f"Goes on from step {checkpoint.step}.")
        try:
            work = _teach(library, replaces, lesson, settings, model, layers, shapes, request, checkpoint, note)
            return (yield from work)
        except BaseException as error:
            checkpoint.save()
            if isinstance(error, SeqLoRAError) and checkpoint.step is not None:
                raise SeqLoRAError(f"{str(error).rstrip('.')}; its checkpoint of step {checkpoint.step} stays.") from error
            raise


def beyond_plan(place: int, planned: int) -> str:
    """What to know before concept number `place` is taught: docs/results.md shows what becomes of 101 in a library of 32."""
    if place <= planned:
        return ""
    return (
        f"This is concept {place} of a library planned for {planned}: what concepts change elsewhere adds up, so with all of "
        "them on each keeps less of itself, and so does the base model. Start a library with a larger capacity for more."
    )


def _teach(
    library: Library,
    replaces: str | None,
    lesson: Lesson,
    settings: Settings,
    model: Model,
    layers: dict[str, nn.Module],
    shapes: dict[str, list[int]],
    request: str,
    checkpoint: Checkpoint,
    note: str,
) -> Steps[Taught]:
    resumed_at = checkpoint.step
    captions, added = prepare_captions(lesson)
    needs_prior = settings.interference > 0 or settings.basis_start == "contrastive"
    prior = library.prior()
    with memory_advice(settings):
        examples = Examples(model.encode_pictures(lesson.pictures), model.encode_captions(captions))
        check_latents(examples.latents)
        if prior is None and needs_prior:
            prior = yield from _measured_prior(library, model, layers, examples.latents[0].shape)
    others = library.without(replaces) if replaces else library
    earlier = [others.load(name) for name in others.names]
    trained = yield from train_concept(
        model.denoiser,
        layers,
        examples,
        settings,
        library.ranks(shapes),
        earlier,
        prior if needs_prior else None,
        others.moments_sum() if needs_prior else None,
        checkpoint,
        library.capacity,
    )
    yield Progress("saving", trained.steps, settings.steps)
    across, within = metrics.basis_error([*earlier, trained.pairs])
    report: dict[str, Any] = {
        "steps": trained.steps,
        "seconds": round(checkpoint.seconds, 1),
        "first_loss": _mean(trained.losses[:10]),
        "last_loss": _mean(trained.losses[-10:]),
        "captions_given_the_trigger": added,
        "largest_overlap_entry": across,
        "largest_orthonormality_error": within,
        "captured_energy": metrics.captured_energy(trained.pairs, trained.moments),
        "change_norm": metrics.change_norm(trained.pairs),
        "full_layers": len(trained.full_layers),
        "precision": str(model.denoiser.dtype).removeprefix("torch."),
    }
    if trained.steps < settings.steps:
        report["ended_early_at"] = trained.steps
    if note:
        report["note"] = note
    if resumed_at is not None:
        report["resumed_at"] = resumed_at
    library = library.with_base(Base(dict(model.layout), shapes, model.fingerprint), prior)
    library = library.add(
        lesson.name,
        lesson.trigger,
        lesson.class_word,
        trained,
        asdict(settings),
        request,
        report | {"losses": thinned(trained.losses)},
        encode(lesson.pictures[0]),
        replaces,
    )
    with suppress(OSError):
        _prior_file(library).unlink()
    checkpoint.remove()
    return Taught(library, library.find(lesson.name), trained.losses, report)


def _prior_file(library: Library) -> Path:
    """Where G waits for the first concept to be filed: it belongs to a model, which the library has not got before."""
    return library.path / FOLDER / "prior.safetensors"


def _measured_prior(library: Library, model: Model, layers: Mapping[str, nn.Module], shape: Sequence[int]) -> Steps[Moments]:
    """G, or what a training that was cancelled found it to be."""
    binding = request_hash(model.fingerprint, layer_shapes(layers), model.generic_captions, list(shape))
    with suppress(SeqLoRAError):
        return checkpoints.read(_prior_file(library), binding).moments
    uncond, *generic = model.encode_captions(["", *model.generic_captions])
    prior = yield from measure_prior(model.denoiser, layers, shape, generic, uncond)
    with suppress(SeqLoRAError):  # a disk that is full will tell when it matters
        checkpoints.write(_prior_file(library), State({}, {}, prior), binding)
    return prior


def about(taught: Taught) -> dict[str, Any]:
    """What was taught, with the settings that were used, and the figures."""
    record, library = taught.record, taught.library
    return {
        "library": library.path.name,
        "concept": record.name,
        "trigger": record.trigger,
        "class_word": record.class_word,
        "number": record.id,
        "file": record.file,
        "settings": dict(record.settings),
    } | dict(taught.report)


def thinned(losses: Sequence[float], points: int = 200) -> list[float]:
    """The curve as means of at most so many equal parts."""
    count = min(len(losses), points)
    edges = [len(losses) * i // count for i in range(count + 1)] if count else []
    return [_mean(losses[start:stop]) for start, stop in zip(edges, edges[1:], strict=False)]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(len(values), 1), 6)
