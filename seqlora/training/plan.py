"""What a training will need, told before it begins: measured by a few steps that leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..diffusion.batches import Examples
from ..diffusion.model import Model
from ..families import usual
from ..library.store import Library
from ..lora.targets import layer_shapes
from ..method.moments import SKETCH_RANK
from ..settings import Settings
from .checks import memory_advice
from .encoding import seen_captions
from .measure import measure_prior
from .prior import known_prior
from .progress import run_to_end
from .request import TrainingRequest, check_request, fit_pictures
from .start import Surroundings
from .trace import layers_of, trace_layers
from .trainer import ConceptTrainer
from .trigger import LearnedTrigger, learnable

FLOAT = 4  # bytes
PROBED = 3  # steps; the first warms up


@dataclass(frozen=True)
class Plan:
    """Times in seconds, sizes in bytes."""

    steps: int
    batch_size: int
    step_seconds: float
    prior_seconds: float  # measuring the base model; 0 where that was done before
    concept_seconds: float  # measuring the concept
    device: str
    device_bytes: int | None  # the most that is held there, model and all; None where that cannot be asked
    device_total: int | None
    file_bytes: int  # of the concept in the library, with its moments
    checkpoint_bytes: int

    @property
    def seconds(self) -> float:
        return self.prior_seconds + self.concept_seconds + self.steps * self.step_seconds

    def lines(self) -> list[str]:
        found = [
            f"{_time(self.seconds)} in all: {self.steps} steps of {self.step_seconds:.2g} s with {self.batch_size} "
            f"pictures each, after {_time(self.concept_seconds)} to measure the concept"
        ]
        if self.prior_seconds:
            found.append(f"of it {_time(self.prior_seconds)} to measure the base model, once for all libraries of this folder")
        if self.device_bytes is not None and self.device_total is not None:
            found.append(f"{_size(self.device_bytes)} of the {_size(self.device_total)} of {self.device}")
            if self.device_bytes > 0.95 * self.device_total:
                found.append("that is tight: lower batch_size, the pictures' size, or the library's rank")
        found.append(f"{_size(self.file_bytes)} of disk, and {_size(self.checkpoint_bytes)} while it is taught")
        return found


def plan(library: Library, request: TrainingRequest, settings: Settings, model: Model) -> Plan:
    """Takes a training's first steps and tells what all of it would take. Writes nothing.

    The probing steps start from random bases and are not kept apart from anything, which costs nothing else. Raises
    SeqLoRAError for whatever the training would be refused for, and where the device has too little memory.
    """
    request, _ = fit_pictures(check_request(request), usual(model.family).resolution)
    settings, _ = learnable(settings.resolved(model.family), model)
    layers = layers_of(library, model)
    earlier = [library.load(name) for name in library.names]
    on_gpu = model.denoiser.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.denoiser.device)
    with memory_advice(settings):
        captions, _ = seen_captions(model, request)
        examples = Examples(model.encode_pictures(request.pictures), model.encode_captions(captions))
        if library.base is None:
            layers = {name: layers[name] for name in trace_layers(model.denoiser, layers, examples)}
        shapes = layer_shapes(layers)
        ranks = library.ranks({name: list(shape) for name, shape in shapes.items()})
        probing = settings.with_(basis_init="random", interference_weight=0.0)
        trigger = LearnedTrigger.of(settings, model, request.trigger, captions)
        trainer = ConceptTrainer(
            model.denoiser, layers, examples, probing, ranks, Surroundings(earlier, capacity=library.capacity), trigger
        )
        began = time.perf_counter()
        run_to_end(trainer.measure(), lambda progress: None)
        measured = time.perf_counter() - began
        took = []
        with trainer.attached():
            for _ in range(PROBED):
                began = time.perf_counter()
                trainer.step()
                took.append(time.perf_counter() - began)
        prior = _prior_seconds(library, model, layers, settings, examples)
    peak = torch.cuda.max_memory_allocated(model.denoiser.device) if on_gpu else None
    if peak is not None and settings.interference_weight > 0:
        peak += _penalty_bytes(shapes)
    adapter = sum(ranks[name] * (m + n) for name, (m, n) in shapes.items()) * FLOAT
    seen = trainer.concept.moments.by_input.values()
    moments = sum(moment.sketch.numel() + moment.diagonal.numel() for moment in seen) * FLOAT
    return Plan(
        settings.steps,
        settings.batch_size,
        min(took[1:]),
        prior,
        measured,
        torch.cuda.get_device_name(model.denoiser.device) if on_gpu else "the CPU",
        peak,
        torch.cuda.get_device_properties(model.denoiser.device).total_memory if on_gpu else None,
        adapter + moments,
        3 * adapter + moments,  # the factors and what Adam remembers of them
    )


def _prior_seconds(
    library: Library, model: Model, layers: Mapping[str, torch.nn.Module], settings: Settings, examples: Examples
) -> float:
    needed = settings.interference_weight > 0 or settings.basis_init == "contrastive"
    shape = examples.latents[0].shape
    if not needed or library.prior() is not None or known_prior(library, model, layers, shape) is not None:
        return 0.0
    uncond, one = model.encode_captions(["", model.generic_captions[0]])
    began = time.perf_counter()
    run_to_end(measure_prior(model.denoiser, layers, shape, [one], uncond), lambda progress: None)
    return (time.perf_counter() - began) * len(model.generic_captions)


def _penalty_bytes(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Of the factors that the interference penalty holds on the device."""
    return sum((m + n) * (SKETCH_RANK + 1) for m, n in shapes.values()) * FLOAT


def _time(seconds: float) -> str:
    """In whole units of a size that one plans by."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
