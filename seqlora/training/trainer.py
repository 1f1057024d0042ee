"""Teaching one concept: measure what the layers see, start the basis, then one loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..diffusion.batches import Batch, Batches, Examples, denoising_loss
from ..diffusion.denoiser import Denoiser
from ..diffusion.gradients import differentiable
from ..errors import SeqLoRAError
from ..families import OTHER
from ..lora.attach import ActiveConcepts, Stack, attached
from ..lora.targets import layer_shapes
from ..lora.types import Concept, LoRAPair
from ..method.moments import Moments
from ..method.optimizer import BilevelOptimizer, Level, Rates
from ..method.penalty import overlap_penalty
from ..method.trained import TrainedConcept
from ..settings import Settings
from . import remarks
from .checkpoint import Checkpoint, State
from .checks import check_latents, memory_advice
from .measure import mean_error, measure_concept
from .progress import Phase, Progress, TrainingSteps
from .snapshot import TrainingSnapshot
from .start import (
    Surroundings,
    build_stacks,
    constrain,
    constraint_of,
    earlier_bases,
    interference_of,
    orthonormalised,
    start_pair,
)
from .trigger import LearnedTrigger

MOST_ACTIVE = 16  # earlier concepts at a time, so that a step's cost does not grow with the library
STEPS_BETWEEN_DRAWS = 4
NO_CHANGE: Concept = {}
RECORDED = ("losses", "penalties", "residuals", "gradients")  # of a `TrainedConcept`, one value a step


class StepFigures(NamedTuple):
    loss: float
    penalty: float
    residual: float  # of the lower level: norm of dL/dA, and of the vectors' gradient
    gradient: float  # of the upper level: norm of the Riemannian gradient


class ConceptTrainer:
    """One concept while it is taught.

    Build it, then either `measure()` it or `load_state_dict()`; `step()` inside `attached()`; `state_dict()` between steps;
    `result()`. The layers are never written to. Raises SeqLoRAError before any work where a layer is full and `when_full` is
    "refuse".
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: Mapping[str, nn.Module],
        examples: Examples,
        settings: Settings,
        ranks: Mapping[str, int],
        beside: Surroundings,
        trigger: LearnedTrigger | None = None,
        change: Concept = NO_CHANGE,
    ):
        check_latents(examples.latents)
        settings = settings.resolved(OTHER)
        self.denoiser, self.layers, self.settings, self.ranks, self.beside = denoiser, layers, settings, ranks, beside
        self.shapes = layer_shapes(layers)
        self.free_of, self.full_layers = constrain(settings, self.shapes, ranks, beside.earlier)
        self.trigger, self.change = trigger, change
        self.rng = torch.Generator().manual_seed(settings.seed)
        seen = trigger.examples(examples) if trigger else examples
        self.batches = Batches(seen, denoiser, settings.batch_size, self.rng)
        self._counters: dict[str, Any] | None = None  # as of the last whole step; until there is one there is nothing to keep
        self._whole = False  # whether the tensors are those of that step

    # -- before the first step

    def measure(self) -> TrainingSteps[None]:
        """Measures what the layers see of the concept and starts from it, and from the `change` that is to be followed."""
        with memory_advice(self.settings):
            own = yield from measure_concept(self.denoiser, self.layers, self.batches)
        others = self.beside.others
        pairs = {
            name: start_pair(self.settings, name, self.shapes[name], self.ranks[name], F, own, others, self.rng, self.change)
            for name, F in self.free_of.items()
        }
        for moment in own.by_input.values():
            moment.forget()  # it stays for the whole training; what the bases took of it is needed no more
        self._build(own, pairs)

    def load_state_dict(self, state: State) -> None:
        """Goes on after the step that the state was taken at, and ends as if it had never stopped."""
        ranks, shapes = self.ranks, self.shapes
        empty = {name: (torch.zeros(m, ranks[name]), torch.zeros(n, ranks[name])) for name, (m, n) in shapes.items()}
        self._build(state.moments, {name: LoRAPair(*pair) for name, pair in empty.items()})
        counters = state.counters
        self.optimizer.restore(state.tensors, counters["passes"], counters["turn"])
        self.rng.set_state(torch.frombuffer(bytearray.fromhex(counters["rng"]), dtype=torch.uint8))
        self.batches.queues, self._on = counters["queues"], counters["on"]
        for name in RECORDED:
            setattr(self.concept, name, state.tensors[name].tolist())
        self.concept.steps = counters["step"]
        self.active.select(self._on)

    def _build(self, own: Moments, pairs: Mapping[str, LoRAPair]) -> None:
        settings, beside = self.settings, self.beside
        self.stacks = build_stacks(pairs, self.denoiser.device, self.denoiser.dtype)
        free = settings.orthogonality == "none"
        self.optimizer = BilevelOptimizer(
            self.stacks,
            [None if free else constraint_of(stack, self.free_of) for stack in self.stacks],
            Rates(settings.learning_rate, settings.basis_learning_rate, settings.trigger_learning_rate),
            settings.steps,
            settings.schedule,
            settings.inner_steps,
            list(self.trigger.leaves.values()) if self.trigger else (),
        )
        others, penalised = beside.others, settings.interference_weight > 0
        self.penalties = (
            [interference_of(stack, others, beside.prior, settings.weighting) for stack in self.stacks]
            if others is not None and beside.prior is not None and penalised
            else []
        )
        overlap = settings.overlap > 0 and beside.earlier
        self.overlaps = [earlier_bases(stack, beside.earlier) for stack in self.stacks] if overlap else []
        self.active = ActiveConcepts(self.stacks, () if settings.co_training == "modular" else beside.earlier)
        self.concept = TrainedConcept({}, own, self.full_layers)
        self._lower_batch, self._penalty, self._on = self.batches.next(), torch.zeros(()), list[int]()

    # -- steps

    @property
    def done(self) -> bool:
        return self.optimizer.passes >= self.settings.steps

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While open, the model draws with the concept on it, and can be taught. Says what to lower when memory runs out."""
        with memory_advice(self.settings), attached(self.layers, self.stacks, self.active):
            yield

    def step(self) -> StepFigures:
        """One round of the optimiser's schedule. Raises SeqLoRAError for a loss that is no number."""
        if self.active.count and len(self.concept.losses) % STEPS_BETWEEN_DRAWS == 0:
            self._on = draw_active(self.settings.co_training, self.active.count, self.rng)
            self.active.select(self._on)
        loss = self.optimizer.step(self._gradients)
        measured = (loss, self._penalty, self.optimizer.residual, self.optimizer.gradient)
        figures = StepFigures(*torch.stack([figure.to(self.denoiser.device) for figure in measured]).tolist())
        if not math.isfinite(figures.loss):
            raise SeqLoRAError(
                f"The loss was no longer a number at step {self.optimizer.passes}",
                f"lower learning_rate (now {self.settings.learning_rate:g}) or check the pictures",
            )
        for name, value in zip(RECORDED, figures, strict=True):
            getattr(self.concept, name).append(value)
        self._counters, self._whole = self._count(), True
        self.concept.steps = self._counters["step"]
        return figures

    def _gradients(self, level: Level) -> Tensor:
        """A forward and backward; leaves the gradients of loss and penalties in the stacks."""
        self._whole = self._counters is not None  # until the last pass of a step is done, the tensors can be had as they were
        batch = self._lower_batch if level is Level.LOWER_AGAIN else self.batches.next()
        if level is Level.LOWER:
            self._lower_batch = batch
        loss = self._backward(batch)
        strength = self.settings.interference_weight * self.beside.capacity
        parts = [penalty.add(stack, strength) for penalty, stack in zip(self.penalties, self.stacks, strict=False)]
        parts += [overlap_penalty(s, F, self.settings.overlap) for s, F in zip(self.stacks, self.overlaps, strict=False)]
        self._penalty = torch.stack(parts).sum() if parts else self._penalty
        self._whole = False
        return loss

    def _backward(self, batch: Batch) -> Tensor:
        with differentiable(self.denoiser):
            if self.trigger:
                batch = replace(batch, cond=self.trigger.conds(self.batches.examples, batch.picked))
            loss = denoising_loss(self.denoiser, batch)
            if not loss.requires_grad:
                raise SeqLoRAError("This model runs without gradients here, so it cannot be taught", "load it in another way")
            loss.backward()
        for stack in self.stacks:
            stack.gather()
        return loss.detach()

    def _count(self) -> dict[str, Any]:
        """What a pass changes even if it is interrupted; the tensors move only after it."""
        return {
            "step": min(self.optimizer.passes, self.settings.steps),  # a look-ahead may go beyond the last
            "passes": self.optimizer.passes,
            "turn": self.optimizer.turn,
            "on": self._on,
            "queues": [list(queue) for queue in self.batches.queues],
            "rng": self.rng.get_state().numpy().tobytes().hex(),
        }

    # -- after a step

    def state_dict(self) -> State | None:
        """The last whole step, or None while it cannot be had. Its tensors are not copies."""
        if self._counters is None or not self._whole:
            return None
        recorded = {name: torch.tensor(getattr(self.concept, name), dtype=torch.float64) for name in RECORDED}
        return State(self._counters, self.optimizer.state() | recorded, self.concept.moments)

    def snapshot(self) -> TrainingSnapshot:
        beside = self.beside
        own, triggers = self.concept.moments, self.trigger.triggers if self.trigger else dict
        return TrainingSnapshot(self.stacks, self.active, beside.earlier, own, beside.earlier_moments, beside.prior, triggers)

    def result(self) -> TrainedConcept:
        """The concept as it is now, in the order of the layers, every basis orthonormal."""
        free = self.settings.orthogonality == "none"
        pairs = {name: pair for stack in self.stacks for name, pair in stack.pairs().items()}
        self.concept.pairs = {name: orthonormalised(pairs[name]) if free else pairs[name] for name in self.layers}
        return self.concept

    def run(self, checkpoint: Checkpoint) -> TrainingSteps[None]:
        """Steps to the end, or until "keep" is sent; saves when it is time to."""
        snapshot, steps = self.snapshot(), self.settings.steps
        with self.attached():
            while not self.done:
                figures = self.step()
                remark = remarks.while_training(self.concept.losses, self.settings)
                note = " ".join(filter(None, (checkpoint.save_if_due(self.state_dict), remark)))
                told = Progress(Phase.TRAINING, self.concept.steps, steps, figures.loss, figures.penalty, note, snapshot)
                if (yield told) == "keep":
                    break
        if self.trigger:
            yield from self._measure_again(self.trigger)

    def _measure_again(self, trigger: LearnedTrigger) -> TrainingSteps[None]:
        """What the layers see of the concept now that its vectors are learned, from the same noise: what later ones heed."""
        same = torch.Generator().manual_seed(self.settings.seed)
        batches = Batches(trigger.examples(self.batches.examples), self.denoiser, self.batches.size, same)
        with memory_advice(self.settings):
            moments = yield from measure_concept(self.denoiser, self.layers, batches)
        self.concept.moments, self.concept.vectors = moments, trigger.values()

    def judge(self) -> TrainingSteps[None]:
        """The error on the concept's own pictures without it and with it, from the same noise; no other concept is on."""
        bare, own = self.batches.examples, self.trigger.examples(self.batches.examples) if self.trigger else None
        self.concept.error_without = self._error(bare, ())
        yield Progress(Phase.SAVING, self.concept.steps, self.settings.steps)
        self.concept.error_with = self._error(own or bare, self.stacks)

    def _error(self, examples: Examples, stacks: Sequence[Stack]) -> float:
        same = torch.Generator().manual_seed(self.settings.seed)
        with memory_advice(self.settings), attached(self.layers, stacks):
            return mean_error(self.denoiser, Batches(examples, self.denoiser, self.batches.size, same))


def draw_active(co_training: str, count: int, rng: torch.Generator) -> list[int]:
    """Which earlier concepts are on: all, or each with a chance that is itself drawn, so that subsets of every size occur."""
    if co_training == "cumulative":
        return list(range(count))
    chance = torch.rand((), generator=rng)
    order = torch.randperm(count, generator=rng)
    on = order[torch.rand(count, generator=rng) < chance]
    return on[:MOST_ACTIVE].tolist()


def train_concept(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    examples: Examples,
    settings: Settings,
    ranks: Mapping[str, int],
    earlier: Sequence[Concept] = (),
    prior: Moments | None = None,
    earlier_moments: Moments | None = None,
    capacity: int = 1,
    trigger: LearnedTrigger | None = None,
) -> TrainingSteps[TrainedConcept]:
    """Teaches one concept and keeps it nowhere; yields progress after every pass and returns the result.

    Sending "keep" ends it early. Closing the generator at any point leaves the model as it was. Raises SeqLoRAError on values
    that are not finite and when memory runs out.
    """
    beside = Surroundings(earlier, prior, earlier_moments, capacity)
    trainer = ConceptTrainer(denoiser, layers, examples, settings, ranks, beside, trigger)
    yield from trainer.measure()
    yield from trainer.run(Checkpoint())
    return trainer.result()
