"""Teaching a concept into a library, from pictures to file: what the node and the command line share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..diffusion.batches import Examples
from ..diffusion.model import Model
from ..errors import SeqLoRAError
from ..library.store import Base, Library, LibraryLock, Record, request_hash
from ..library.thumbnails import encode
from ..lora.targets import layer_shapes
from ..method import metrics
from ..method.moments import Moments
from ..settings import Settings, legacy_names
from . import checkpoint as checkpoints
from .checkpoint import FOLDER, MINUTES, Checkpoint, State
from .checks import check_latents, memory_advice
from .measure import measure_prior
from .progress import Progress, TrainingSteps
from .request import TrainingRequest, check_request, data_hash, prepare_captions
from .trainer import train_concept


@dataclass(frozen=True)
class TrainResult:
    library: Library
    record: Record
    losses: Sequence[float]
    report: Mapping[str, Any]
    reused: bool = False  # the same request had been taught before

    @classmethod
    def again(cls, library: Library, record: Record) -> TrainResult:
        """What is known of a concept that was taught earlier: its losses as `thinned` left them."""
        figures = dict(record.metrics)
        losses = figures.pop("losses", [])
        return cls(library, record, losses, figures | {"reused": True}, reused=True)


def teach(
    library: Library,
    lesson: TrainingRequest,
    settings: Settings,
    model: Model,
    checkpoint_minutes: float = MINUTES,
    replace: bool = False,
) -> TrainingSteps[TrainResult]:
    """Teaches a concept and files it; a request that was taught before is found again, one that was cancelled goes on.

    Waits while another training writes to the library. Sending "keep" ends the training and files the concept as it is. Closing
    the generator leaves model and library as they were, and a checkpoint; so does whatever goes wrong after the first step.
    Checkpoints are also written every `checkpoint_minutes`, unless that is 0. With `replace` a concept of that name is taught
    anew, beside all the others, and stays until the new version is filed. Raises SeqLoRAError with nothing else written.
    """
    lesson = check_request(lesson)
    layers = model.layers(library.targets)
    shapes = {name: list(shape) for name, shape in layer_shapes(layers).items()}
    library.check_base(shapes)
    asked = (data_hash(lesson), lesson.trigger, lesson.class_word, legacy_names(settings))
    request = request_hash(*asked, library.rank, library.capacity, model.fingerprint)
    turn = LibraryLock(library.path)
    while not turn.acquire(timeout=0.5):
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
                return TrainResult.again(library, record)
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
    lesson: TrainingRequest,
    settings: Settings,
    model: Model,
    layers: dict[str, nn.Module],
    shapes: dict[str, list[int]],
    request: str,
    checkpoint: Checkpoint,
    note: str,
) -> TrainingSteps[TrainResult]:
    resumed_at = checkpoint.step
    captions, added = prepare_captions(lesson)
    needs_prior = settings.interference_weight > 0 or settings.basis_init == "contrastive"
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
    return TrainResult(library, library.find(lesson.name), trained.losses, report)


def _prior_file(library: Library) -> Path:
    """Where G waits for the first concept to be filed: it belongs to a model, which the library has not got before."""
    return library.path / FOLDER / "prior.safetensors"


def _measured_prior(
    library: Library, model: Model, layers: Mapping[str, nn.Module], shape: Sequence[int]
) -> TrainingSteps[Moments]:
    """G, or what a training that was cancelled found it to be."""
    binding = request_hash(model.fingerprint, layer_shapes(layers), model.generic_captions, list(shape))
    with suppress(SeqLoRAError):
        return checkpoints.read(_prior_file(library), binding).moments
    uncond, *generic = model.encode_captions(["", *model.generic_captions])
    prior = yield from measure_prior(model.denoiser, layers, shape, generic, uncond)
    with suppress(SeqLoRAError):  # a disk that is full will tell when it matters
        checkpoints.write(_prior_file(library), State({}, {}, prior), binding)
    return prior


def about(taught: TrainResult) -> dict[str, Any]:
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
