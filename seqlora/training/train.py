"""Teaching a concept into a library, from pictures to file: what the node and the command line share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from torch import nn

from ..diffusion.batches import Examples
from ..diffusion.model import Model
from ..errors import SeqLoRAError
from ..families import FAMILIES, OTHER
from ..library.lock import LibraryLock
from ..library.manifest import Base
from ..library.store import Library, request_hash
from ..library.thumbnails import encode
from ..library.writer import MANIFEST, LibraryWriter
from ..lora.targets import layer_shapes
from ..lora.types import Concept
from ..method import metrics
from ..method.moments import Moments
from ..method.trained import TrainedConcept
from ..settings import Settings, legacy_names
from . import remarks
from .checkpoint import FOLDER, MINUTES, Checkpoint
from .checks import check_latents, memory_advice
from .encoding import seen_captions
from .prior import measured_prior
from .progress import Phase, Progress, TrainingSteps, run_to_end
from .request import TrainingRequest, check_request, data_hash, fit_pictures, prepare_captions, request_parts
from .result import TrainingReport, TrainResult, thinned
from .start import Surroundings, constrain
from .trace import layers_of, trace_layers
from .trainer import ConceptTrainer
from .trigger import LearnedTrigger, learnable

logger = logging.getLogger("seqlora")
GONE = "The library's folder was deleted while the concept was taught; the library was made anew and holds this concept only."


@dataclass(frozen=True)
class Job:
    """One training, once it is clear that it must be done."""

    writer: LibraryWriter[Library]
    replaces: str | None  # the concept of which this is a new version
    request: TrainingRequest
    request_hash: str
    parts: Mapping[str, str]  # see request_parts
    settings: Settings
    automatic: Sequence[str]  # names of settings that were left to the model
    model: Model
    layers: Mapping[str, nn.Module]
    checkpoint: Checkpoint
    note: str = ""  # what there is to say of it
    left_out: int = 0  # layers that never run on such inputs or reach no output

    @property
    def library(self) -> Library:
        return self.writer.library

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: list(shape) for name, shape in layer_shapes(self.layers).items()}

    @property
    def others(self) -> Library:
        """The library as it will be beside the new concept."""
        return self.library.without(self.replaces) if self.replaces else self.library


def train_steps(
    library: Library,
    request: TrainingRequest,
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
    request, resized = fit_pictures(check_request(request), FAMILIES.get(model.family, FAMILIES[OTHER]).resolution)
    automatic, (settings, without) = settings.automatic, learnable(settings.resolved(model.family), model)
    layers_of(library, model)  # a library of another model is refused before any waiting
    data = data_hash(request)
    parts = request_parts(data, request, settings, model)
    asked = (data, request.trigger, request.class_word, legacy_names(settings))
    older = request_hash(*asked, library.rank, library.capacity, model.fingerprint)  # by which format 1 knew only a part of it
    request_id = request_hash(older, parts) if model.parts else older
    lock = LibraryLock(library.path)
    while not lock.acquire(timeout=0.5):
        yield Progress(Phase.WAITING, 0, 1)
    with library.writing(lock) as writer:
        library = writer.library
        replaces = request.name if replace and request.name in library.names else None
        folder = library.path / FOLDER
        begun = older if (folder / f"{older}.safetensors").exists() else request_id
        checkpoint = Checkpoint(folder / f"{begun}.safetensors", minutes=checkpoint_minutes)
        lesson = (request, request_id, parts, settings, automatic)
        note = _join(resized, without, model.remark)
        job = Job(writer, replaces, *lesson, model, layers_of(library, model), checkpoint, note)
        checkpoint.binding = binding_of(job, begun)
        for record in library.concepts:
            if record.name == request.name and record.request in (request_id, older):
                checkpoint.remove()  # left by a process that died right after it had filed the concept
                return TrainResult.again(library, record)
        _check_name(job)
        return (yield from _train(job))


def train(
    library: Library,
    request: TrainingRequest,
    settings: Settings,
    model: Model,
    on_progress: Callable[[Progress], str | None] = lambda progress: None,
    replace: bool = False,
) -> TrainResult:
    """Teaches a concept to its end and files it.

    Args:
        library: where the concept goes; other trainings into it are waited for.
        request: name, trigger, class word, pictures (h, w, 3) in 0..1, and captions or none.
        settings: how it is taught; what they leave to the model is as suits its family.
        model: what it is taught to, see `load_model`.
        on_progress: is told of every step, and may answer "keep", which ends the training with what was learned.
        replace: teach a concept of that name anew; the old version stays until the new one is filed.

    Returns:
        The library with the concept, its record, the losses and a report.

    Raises:
        SeqLoRAError: for anything the caller can mend; library and model are as they were.

    Example:
        >>> result = train(library, TrainingRequest("rex", "zorv", "dog", pictures), Settings(steps=500), model)
        >>> result.library.names
        ['rex']
    """
    return run_to_end(train_steps(library, request, settings, model, replace=replace), on_progress)


def _check_name(job: Job) -> None:
    """Raises SeqLoRAError for a name that is taken; says in what the concept of that name was asked for otherwise."""
    try:
        job.others.free_name(job.request.name)
    except SeqLoRAError as error:
        taken = next((record for record in job.others.concepts if record.name == job.request.name), None)
        before = dict(part.split("=", 1) for part in (taken.metrics.get("made_with", []) if taken else []))
        other = [name for name, value in job.parts.items() if name in before and before[name] != value]
        if not other:
            raise
        raise SeqLoRAError(
            f"{error.problem}, taught with another {' and '.join(other)}",
            "choose another name, or turn on replace to teach it anew",
        ) from error


def binding_of(job: Job, request_id: str) -> str:
    """A hash of what a checkpoint depends on: the request, the concepts beside it (their files change with a name, what was
    taught anew has another time), the layers."""
    beside = [(record.id, record.created, record.request, record.moments_sha256) for record in job.others.concepts]
    return request_hash(request_id, beside, job.shapes)


def _train(job: Job) -> TrainingSteps[TrainResult]:
    checkpoint, steps = job.checkpoint, job.settings.steps
    state, set_aside = checkpoint.load()
    beyond = remarks.beyond_plan(len(job.others.concepts) + 1, job.library.capacity)
    words = remarks.of_words(job.request, job.others.concepts, job.model.pieces(job.request.trigger))
    base = remarks.of_base(job.library.path.name, job.library.base, job.model.fingerprint)
    said = (set_aside, beyond, base, job.note, remarks.of_rate(job.settings, job.model.family), *words)
    job = replace(job, note=_join(*said))
    if job.note:
        yield Progress(Phase.MEASURING, 0, 1, note=job.note)
    if state:
        yield Progress(Phase.TRAINING, checkpoint.step or 0, steps, note=f"Goes on from step {checkpoint.step}.")
    resumed_at, trainer = checkpoint.step, None
    doing = f"goes on from step {resumed_at}" if state else f"starts, {steps} steps on {len(job.request.pictures)} pictures"
    logger.info("the training of '%s' into library '%s' %s", job.request.name, job.library.path.name, doing)
    try:
        job, trainer, prior = yield from _trainer_of(job)
        if state:
            trainer.load_state_dict(state)
        else:
            yield from trainer.measure()
        state = None  # its tensors need not be held any longer
        yield from trainer.run(checkpoint)
        concept = trainer.result()
        remark = remarks.at_end(concept.losses, job.settings)
        yield Progress(Phase.SAVING, concept.steps, steps, note=remark)
        report = _report(job, concept, trainer.beside.earlier, _join(job.note, remark), resumed_at)
        return _file(job, concept, prior, report)
    except BaseException as error:
        if trainer is not None:
            checkpoint.save(trainer.state_dict())
        if isinstance(error, SeqLoRAError) and checkpoint.step is not None:
            raise error.also(f"its checkpoint of step {checkpoint.step} stays") from error
        raise


def _trainer_of(job: Job) -> TrainingSteps[tuple[Job, ConceptTrainer, Moments | None]]:
    """Encodes the lesson, finds the layers that take part, reads what is beside it, measures a prior that is missing."""
    library, model, settings = job.library, job.model, job.settings
    needs_prior = settings.interference_weight > 0 or settings.basis_init == "contrastive"
    prior = library.prior()
    earlier = [job.others.load(name) for name in job.others.names]  # first: what is damaged or full is told before any work
    if settings.when_full == "refuse":
        constrain(settings, layer_shapes(job.layers), library.ranks(job.shapes), earlier)
    with memory_advice(settings):
        captions, remark = seen_captions(model, job.request)
        job = yield from _remarked(job, remark)
        examples = Examples(model.encode_pictures(job.request.pictures), model.encode_captions(captions))
        trigger = LearnedTrigger.of(settings, model, job.request.trigger, captions)
        check_latents(examples.latents)
        taking_part = trace_layers(model.denoiser, job.layers, examples)
        if library.base is None:  # else the library has said so already
            layers = {name: job.layers[name] for name in taking_part}
            left_out = len(job.layers) - len(layers)
            job = yield from _remarked(
                replace(job, layers=layers, left_out=left_out), remarks.of_layers(left_out, len(job.layers))
            )
        if prior is None and needs_prior:
            prior = yield from measured_prior(library, model, job.layers, examples.latents[0].shape)
            count, seconds = len(model.generic_captions), job.checkpoint.seconds
            logger.info("the base model was measured on %d captions, %.0f s in", count, seconds)
    moments = job.others.moments_sum() if needs_prior else None
    beside = Surroundings(earlier, prior if needs_prior else None, moments, library.capacity)
    trainer = ConceptTrainer(model.denoiser, job.layers, examples, settings, library.ranks(job.shapes), beside, trigger)
    return job, trainer, prior


def _remarked(job: Job, remark: str) -> TrainingSteps[Job]:
    """The job with one more thing to say of it, which is told at once."""
    if remark:
        yield Progress(Phase.MEASURING, 0, 1, note=remark)
    return replace(job, note=_join(job.note, remark))


def _join(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _report(job: Job, concept: TrainedConcept, earlier: Sequence[Concept], note: str, resumed_at: int | None) -> TrainingReport:
    across, within = metrics.basis_error([*earlier, concept.pairs])
    first, last = remarks.first_and_last(concept.losses)
    return TrainingReport(
        steps=concept.steps,
        seconds=round(job.checkpoint.seconds, 1),
        first_loss=round(first, 6),
        last_loss=round(last, 6),
        captions_given_the_trigger=prepare_captions(job.request)[1],
        largest_overlap_entry=across,
        largest_orthonormality_error=within,
        captured_energy=metrics.captured_energy(concept.pairs, concept.moments),
        change_norm=metrics.change_norm(concept.pairs),
        full_layers=len(concept.full_layers),
        layers_left_out=job.left_out or None,
        precision=str(job.model.denoiser.dtype).removeprefix("torch."),
        model_family=job.model.family if job.automatic else None,
        chosen_automatically=list(job.automatic),
        ended_early_at=concept.steps if concept.steps < job.settings.steps else None,
        note=note,
        resumed_at=resumed_at,
    )


def _file(job: Job, concept: TrainedConcept, prior: Moments | None, report: TrainingReport) -> TrainResult:
    """Into the library, and away with what was only there until then."""
    request, writer = job.request, job.writer
    if not (writer.library.path / MANIFEST).exists():
        report = replace(report, note=_join(report.note, GONE))
        logger.warning(GONE)
        writer.start_over()
    made_with = [f"{name}={value}" for name, value in sorted(job.parts.items())]
    writer.bind(Base(dict(job.model.layout), job.shapes, job.model.fingerprint), prior)
    library = writer.add(
        request.name,
        request.trigger,
        request.class_word,
        concept,
        asdict(job.settings),
        job.request_hash,
        report.to_dict() | {"losses": thinned(concept.losses), "made_with": made_with},
        encode(request.pictures[0]),
        job.replaces if job.replaces in writer.library.names else None,
    )
    job.checkpoint.remove()
    told = (request.name, library.path.name, concept.steps, report.seconds)
    logger.info("'%s' is in library '%s' after %d steps, %.0f s", *told)
    return TrainResult(library, library.find(request.name), concept.losses, report)
