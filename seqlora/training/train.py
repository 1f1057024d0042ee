"""Teaching a concept into a library, from pictures to file: what the node and the command line share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from ..diffusion.batches import Answers, Examples
from ..diffusion.model import Model
from ..errors import SeqLoRAError
from ..families import usual
from ..library.lock import LibraryLock
from ..library.manifest import Base
from ..library.store import Library, request_hash
from ..library.thumbnails import encode
from ..library.writer import MANIFEST
from ..lora.targets import layer_shapes
from ..lora.types import Concept
from ..method import metrics
from ..method.moments import Moments
from ..method.trained import TrainedConcept
from ..settings import Settings, legacy_names
from . import remarks
from .adopt import LEAST, Adoption, ask_teacher, disagreement, kept
from .checkpoint import FOLDER, MINUTES, Checkpoint
from .checks import check_latents, memory_advice
from .encoding import seen_captions
from .job import Job, binding_of, check_name
from .prior import measured_prior
from .progress import Phase, Progress, TrainingSteps, run_to_end
from .request import (
    TrainingRequest,
    check_request,
    check_words,
    data_hash,
    fit_pictures,
    prepare_captions,
    request_parts,
)
from .result import TrainingReport, TrainResult, thinned
from .start import Surroundings, constrain
from .trace import layers_of, trace_layers
from .trainer import ConceptTrainer
from .trigger import LearnedTrigger, learnable

logger = logging.getLogger("seqlora")
Asked = tuple[Answers, float]  # what tells how much of a LoRA was kept, and the bare model's disagreement
GONE = "The library's folder was deleted while the concept was taught; the library was made anew and holds this concept only."


def train_steps(
    library: Library,
    request: TrainingRequest,
    settings: Settings,
    model: Model,
    checkpoint_minutes: float = MINUTES,
    replace: bool = False,
    adoption: Adoption | None = None,
) -> TrainingSteps[TrainResult]:
    """Teaches a concept and files it; a request that was taught before is found again, one that was cancelled goes on.

    Waits while another training writes to the library. Sending "keep" ends the training and files the concept as it is. Closing
    the generator leaves model and library as they were, and a checkpoint; so does whatever goes wrong after the first step.
    Checkpoints are also written every `checkpoint_minutes`, unless that is 0. With `replace` a concept of that name is taught
    anew, beside all the others, and stays until the new version is filed. With an `adoption` the request has no pictures: they
    are drawn with the LoRA that is to become the concept. Raises SeqLoRAError with nothing else written.
    """
    automatic = settings.automatic
    if adoption:
        request, said, data = check_words(request), adoption.note, f"{adoption.digest} {adoption.fast}"
        settings = adoption.settings(settings, model.family)
    else:
        request, said = fit_pictures(check_request(request), usual(model.family).resolution)
        data = data_hash(request)
    settings, without = learnable(settings.resolved(model.family), model)
    layers_of(library, model)  # a library of another model is refused before any waiting
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
        note = _join(said, without, model.remark)
        job = Job(writer, replaces, *lesson, model, layers_of(library, model), checkpoint, note, 0, adoption)
        checkpoint.binding = binding_of(job, begun)
        for record in library.concepts:
            if record.name == request.name and record.request in (request_id, older):
                checkpoint.remove()  # left by a process that died right after it had filed the concept
                return TrainResult.again(library, record)
        check_name(job)
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
    source = job.adoption.called if job.adoption else f"{len(job.request.pictures)} pictures"
    doing = f"goes on from step {resumed_at}" if state else f"starts, {steps} steps on {source}"
    logger.info("the training of '%s' into library '%s' %s", job.request.name, job.library.path.name, doing)
    try:
        job, trainer, prior, asked = yield from _trainer_of(job)
        if state:
            trainer.load_state_dict(state)
        else:
            yield from trainer.measure()
        state = None  # its tensors need not be held any longer
        if not (job.adoption and job.adoption.fast):
            yield from trainer.run(checkpoint)
        if not job.adoption:  # which is judged by how much of it was kept
            yield from trainer.judge()
        concept = trainer.result()
        remark = "" if job.adoption else remarks.at_end(concept.error_without, concept.error_with, job.settings)
        yield Progress(Phase.SAVING, concept.steps, steps, note=remark)
        report = _report(job, concept, trainer.beside.earlier, _join(job.note, remark), resumed_at)
        if job.adoption and asked:
            agreed = kept(job.model.denoiser, job.layers, trainer.stacks, *asked)
            report = replace(report, adopted_from=job.adoption.called, kept=round(agreed, 4))
        return _file(job, concept, prior, report)
    except BaseException as error:
        if trainer is not None:
            checkpoint.save(trainer.state_dict())
        if isinstance(error, SeqLoRAError) and checkpoint.step is not None:
            raise error.also(f"its checkpoint of step {checkpoint.step} stays") from error
        raise


def _trainer_of(job: Job) -> TrainingSteps[tuple[Job, ConceptTrainer, Moments | None, Asked | None]]:
    """Encodes the lesson, finds the layers that take part, reads what is beside it, measures a prior that is missing."""
    library, model, settings = job.library, job.model, job.settings
    needs_prior = settings.interference_weight > 0 or settings.basis_init == "contrastive"
    prior = library.prior()
    earlier = [job.others.load(name) for name in job.others.names]  # first: what is damaged or full is told before any work
    if settings.when_full == "refuse":
        constrain(settings, layer_shapes(job.layers), library.ranks(job.shapes), earlier)
    with memory_advice(settings):
        job, captions, examples, asked = yield from _lesson_of(job)
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
    change = job.adoption.change() if job.adoption else {}
    trainer = ConceptTrainer(model.denoiser, job.layers, examples, settings, library.ranks(job.shapes), beside, trigger, change)
    return job, trainer, prior, asked


def _lesson_of(job: Job) -> TrainingSteps[tuple[Job, list[str], Examples, Asked | None]]:
    """A caption for each example, and what a teacher is asked at the end; the job has the pictures that a teacher drew."""
    model, lesson = job.model, None
    if job.adoption:
        with job.adoption.teacher() as teacher:
            lesson = yield from ask_teacher(teacher, job.request.subject)
        job = replace(job, request=replace(job.request, pictures=lesson.pictures, captions=tuple(lesson.captions)))
    captions, remark = seen_captions(model, job.request)
    job = yield from _remarked(job, remark)
    if lesson is None:
        return job, captions, Examples(model.encode_pictures(job.request.pictures), model.encode_captions(captions)), None
    captions, answers, held_out = lesson.for_pupil(captions, model.encode_captions(captions))
    without = disagreement(model.denoiser, held_out)
    if without < LEAST:
        raise SeqLoRAError(
            f"With {job.adoption.called if job.adoption else ''} on, the model predicts what it does without",
            "check the trigger and that the LoRA is made for this model",
        )
    return job, captions, answers, (held_out, without)


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
        error_without=None if job.adoption else round(concept.error_without, 6),
        error_with=None if job.adoption else round(concept.error_with, 6),
        full_layers=len(concept.full_layers),
        layers_left_out=job.left_out or None,
        precision=str(job.model.denoiser.dtype).removeprefix("torch."),
        model_family=job.model.family if job.automatic else None,
        chosen_automatically=list(job.automatic),
        ended_early_at=concept.steps if 0 < concept.steps < job.settings.steps else None,
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
