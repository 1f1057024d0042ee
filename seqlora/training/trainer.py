"""Teaching one concept: measure what the layers see, start the basis, then one loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.batches import Batches, Examples, denoising_loss
from ..diffusion.denoiser import Denoiser
from ..errors import SeqLoRAError
from ..lora.attach import ActiveConcepts, Stack, attached
from ..lora.targets import layer_shapes
from ..lora.types import Concept, LoRAPair
from ..method.basis import contrastive_basis, pca_basis, random_basis
from ..method.moments import Moments
from ..method.optimizer import BilevelOptimizer, Constraint, Rates
from ..method.penalty import Interference, overlap_penalty
from ..method.trained import TrainedConcept
from ..settings import Settings
from .checkpoint import Checkpoint
from .checks import check_latents, memory_advice
from .measure import measure_concept
from .progress import Progress, TrainingSteps
from .snapshot import TrainingSnapshot

CONTEXT_LIMIT = 16  # most earlier concepts on at a time, so that a step's cost does not grow with the library
CONTEXT_STEPS = 4  # steps between draws
RECORDED = ("losses", "penalties", "residuals", "gradients")  # of a `TrainedConcept`, one value a step


def build_stacks(
    shapes: Mapping[str, tuple[int, int]], bases: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> list[Stack]:
    """Stacks by (m, n, r), A at zero and B as given."""
    groups: dict[tuple[int, int, int], list[str]] = {}
    for name, (m, n) in shapes.items():
        groups.setdefault((m, n, bases[name].shape[1]), []).append(name)
    stacks = []
    for (m, _, r), names in groups.items():
        B = torch.stack([bases[name] for name in names]).to(device, torch.float32)
        stacks.append(Stack(names, torch.zeros(len(names), m, r, device=device), B, dtype))
    return stacks


def earlier_directions(name: str, width: int, earlier: Sequence[Concept]) -> Tensor:
    """F (n, p): an orthonormal basis of the span of all earlier concepts' bases, float64."""
    bases = [concept[name].basis.double() for concept in earlier if name in concept]
    if not bases:
        return torch.zeros(width, 0, dtype=torch.float64)
    left, singular, _ = torch.linalg.svd(torch.cat(bases, 1), full_matrices=False)
    return left[:, singular > 1e-4]


def constrain(
    settings: Settings, shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], earlier: Sequence[Concept]
) -> tuple[dict[str, Tensor], list[str]]:
    """F of every layer, and the full layers: those without room for another orthogonal basis, whose F is empty."""
    directions, full = {}, []
    for name, (_, n) in shapes.items():
        F = earlier_directions(name, n, earlier if settings.orthogonality == "exact" else ())
        if F.shape[1] + ranks[name] > n:
            full.append(name)
            F = F[:, :0]
        directions[name] = F
    if full and settings.when_full == "refuse":
        raise SeqLoRAError(
            f"The library is full: {len(full)} layers (first {full[0]}) have no room for another concept of this rank; "
            "set when_full to metric, or start a library with a larger capacity."
        )
    return directions, full


def start_basis(
    settings: Settings, name: str, rank: int, earlier: Tensor, own: Moments, others: Moments | None, rng: torch.Generator
) -> Tensor:
    if settings.basis_init == "random":
        return random_basis(len(earlier), rank, earlier, rng)
    if settings.basis_init == "pca" or others is None:
        return pca_basis(own[name], rank, earlier, rng)
    return contrastive_basis(own[name], others[name], rank, earlier, rng)


def interference_of(stack: Stack, others: Moments, prior: Moments, weighting: str) -> Interference:
    """C of `others` and Gamma of `prior` for the layers of one stack, in units of the layers' own part in the output."""
    seen = [others[name].factor() for name in stack.names]
    if weighting == "sensitivity":
        felt = [prior.felt[name].factor() for name in stack.names]
        mean = math.fsum(prior.sensitivity(name) for name in prior.felt) / len(prior.felt)  # in whatever order a file has them
        weight = torch.full((len(stack.names),), 1 / max(mean, 1e-30))
    else:
        felt = [(torch.zeros(stack.A.shape[1], 0), torch.ones(stack.A.shape[1])) for _ in stack.names]
        weight = 1 / torch.tensor([prior.output_energy[name] for name in stack.names]).clamp(min=1e-12)
    return Interference(*_stacked(seen, stack.A), *_stacked(felt, stack.A), weight.to(stack.A))


def _stacked(factors: Sequence[tuple[Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.stack([v for v, _ in factors]).to(like), torch.stack([d for _, d in factors]).to(like)


def train_concept(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    examples: Examples,
    settings: Settings,
    ranks: Mapping[str, int],
    earlier: Sequence[Concept] = (),
    prior: Moments | None = None,
    earlier_moments: Moments | None = None,
    checkpoint: Checkpoint | None = None,
    planned: int = 1,
) -> TrainingSteps[TrainedConcept]:
    """Teaches one concept; yields progress after every pass and returns the result.

    `earlier` are the library's concepts in order, `earlier_moments` the sum of their moments, `prior` is G, `planned` how many
    concepts will be summed: what they change elsewhere adds up, so each must change less. Goes on from the state that
    `checkpoint` holds, if any, and ends as if it had never stopped. Sending "keep" ends it early. Closing the generator at any
    point leaves the model as it was. Raises SeqLoRAError on values that are not finite, when memory runs out, and before any
    work where a layer is full and `when_full` is "refuse".
    """
    check_latents(examples.latents)
    shapes = layer_shapes(layers)
    constrained, full_layers = constrain(settings, shapes, ranks, earlier)
    rng = torch.Generator().manual_seed(settings.seed)
    batches = Batches(examples, denoiser, settings.batch_size, rng)
    others = _everything_else(prior, earlier_moments, len(earlier))
    checkpoint = checkpoint or Checkpoint()
    state, checkpoint.state = checkpoint.state, None
    if state:
        own = state.moments
        bases = {name: torch.zeros(n, ranks[name]) for name, (_, n) in shapes.items()}
    else:
        with memory_advice(settings):
            own = yield from measure_concept(denoiser, layers, batches)
        bases = {name: start_basis(settings, name, ranks[name], F, own, others, rng) for name, F in constrained.items()}
    stacks = build_stacks(shapes, bases, denoiser.device, denoiser.dtype)
    free = settings.orthogonality == "none"
    constraints = [None if free else _constraint(stack, constrained) for stack in stacks]
    penalties = (
        [interference_of(s, others, prior, settings.weighting) for s in stacks]
        if prior is not None and others is not None and settings.interference_weight
        else []
    )
    strength = settings.interference_weight * planned
    overlaps = _overlaps(stacks, earlier) if settings.overlap and earlier else []
    context = ActiveConcepts(stacks, () if settings.co_training == "modular" else earlier)
    optimizer = BilevelOptimizer(
        stacks,
        constraints,
        Rates(settings.learning_rate, settings.basis_learning_rate),
        settings.steps,
        settings.schedule,
        settings.inner_steps,
    )
    result = TrainedConcept({}, own, full_layers)
    live = TrainingSnapshot(stacks, context, earlier, own, earlier_moments, prior)
    checkpoint.follow(own, lambda: optimizer.state() | _recorded(result))
    lower_batch, penalty = batches.next(), torch.zeros(())
    on: list[int] = []
    if state:
        place = state.place
        optimizer.restore(state.tensors, place["passes"], place["turn"])
        rng.set_state(torch.frombuffer(bytearray.fromhex(place["rng"]), dtype=torch.uint8))
        batches.queues, on = place["queues"], place["on"]
        for name in RECORDED:
            setattr(result, name, state.tensors[name].tolist())
        result.steps = place["step"]
        context.draw(on)
        state = None

    def place_now() -> dict[str, Any]:
        """What a pass changes even if it is interrupted; the tensors move only after it."""
        queues, seen = [list(queue) for queue in batches.queues], rng.get_state().numpy().tobytes().hex()
        step = min(optimizer.passes, settings.steps)  # a look-ahead may go beyond the last
        return {
            "step": step,
            "passes": optimizer.passes,
            "turn": optimizer.turn,
            "on": on,
            "queues": queues,
            "rng": seen,
        }

    def gradients(level: str) -> Tensor:
        nonlocal lower_batch, penalty
        checkpoint.whole = True  # until the last pass of a step is done, its tensors can be had as they were before
        batch = lower_batch if level == "lower again" else batches.next()
        if level == "lower":
            lower_batch = batch
        with torch.enable_grad():
            loss = denoising_loss(denoiser, batch)
            if not loss.requires_grad:
                raise SeqLoRAError("This model runs without gradients here, so it cannot be taught; load it in another way.")
            loss.backward()
        for stack in stacks:
            stack.gather()
        parts = [p.add(s, strength) for p, s in zip(penalties, stacks, strict=True)] if penalties else []
        parts += [overlap_penalty(s, f, settings.overlap) for s, f in zip(stacks, overlaps, strict=False)]
        penalty = torch.stack(parts).sum() if parts else penalty
        checkpoint.whole = False
        return loss.detach()

    with memory_advice(settings), attached(layers, stacks, context):
        while optimizer.passes < settings.steps:
            if context.count and len(result.losses) % CONTEXT_STEPS == 0:
                on = _draw(settings.co_training, context.count, rng)
                context.draw(on)
            loss = optimizer.step(gradients)
            figures = torch.stack([f.to(denoiser.device) for f in (loss, penalty, optimizer.residual, optimizer.gradient)])
            loss, also, residual, gradient = figures.tolist()
            if not math.isfinite(loss):
                raise SeqLoRAError(
                    f"The loss was no longer a number at step {optimizer.passes}; lower learning_rate "
                    f"(now {settings.learning_rate:g}) or check the pictures."
                )
            for name, value in zip(RECORDED, (loss, also, residual, gradient), strict=True):
                getattr(result, name).append(value)
            place = place_now()
            note, result.steps = checkpoint.mark(place), place["step"]
            if (yield Progress("training", result.steps, settings.steps, loss, also, note, live)) == "keep":
                break
    result.pairs = {name: pair for stack in stacks for name, pair in stack.pairs().items()}
    result.pairs = {name: orthonormalised(result.pairs[name]) if free else result.pairs[name] for name in layers}
    return result


def _recorded(result: TrainedConcept) -> dict[str, Tensor]:
    return {key: torch.tensor(getattr(result, key), dtype=torch.float64) for key in RECORDED}


def orthonormalised(pair: LoRAPair) -> LoRAPair:
    """The same A B' with an orthonormal B: concept files are all alike, also those of plain LoRA."""
    basis, triangle = torch.linalg.qr(pair.basis.double())
    return LoRAPair((pair.up.double() @ triangle.mT).float(), basis.float())


def _everything_else(prior: Moments | None, earlier: Moments | None, count: int) -> Moments | None:
    """R = (G + S / (t - 1)) / 2: what the base model can do weighs as much as all earlier concepts, however many these are."""
    if prior is None or earlier is None or not count:
        return prior
    return (prior + earlier * (1 / count)) * 0.5


def _constraint(stack: Stack, directions: Mapping[str, Tensor]) -> Constraint:
    return Constraint(_stack_padded([directions[name] for name in stack.names]).to(stack.B))


def _overlaps(stacks: Sequence[Stack], earlier: Sequence[Concept]) -> list[Tensor]:
    return [
        _stack_padded([torch.cat([c[name].basis for c in earlier if name in c], 1) for name in stack.names]).to(stack.B)
        for stack in stacks
    ]


def _stack_padded(matrices: Sequence[Tensor]) -> Tensor:
    widest = max(matrix.shape[1] for matrix in matrices)
    return torch.stack([nn.functional.pad(matrix, (0, widest - matrix.shape[1])) for matrix in matrices])


def _draw(context: str, count: int, rng: torch.Generator) -> list[int]:
    """Which earlier concepts are on: all, or each with a chance that is itself drawn, so that subsets of every size occur."""
    if context == "cumulative":
        return list(range(count))
    chance = torch.rand((), generator=rng)
    order = torch.randperm(count, generator=rng)
    on = order[torch.rand(count, generator=rng) < chance]
    return on[:CONTEXT_LIMIT].tolist()
