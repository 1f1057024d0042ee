"""Teaching one concept: measure what the layers see, start the basis, then one loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .adapter import Concept, Context, Pair, Stack, attached, layer_shapes
from .basis import contrastive_basis, pca_basis, random_basis
from .checkpoint import Checkpoint
from .errors import SeqLoRAError
from .live import Live
from .moments import Moments, Recorder
from .objective import Batch, Batches, Denoiser, Examples, denoising_loss, expand
from .optimizer import BilevelOptimizer, Constraint, Interference, Rates, overlap_penalty
from .sampling import path
from .settings import Settings

MEASURED_SAMPLES = 48  # noised pictures behind a concept's moments
FELT_EVERY = 2  # sampling steps between two probes of what the output feels
CONTEXT_LIMIT = 16  # most earlier concepts on at a time, so that a step's cost does not grow with the library
CONTEXT_STEPS = 4  # steps between draws
RECORDED = ("losses", "penalties", "residuals", "gradients")  # of a `Trained`, one value a step


@dataclass(frozen=True)
class Progress:
    phase: str  # "measuring", "training" or "saving", or a sentence on what it waits for
    step: int
    steps: int
    loss: float = math.nan
    penalty: float = math.nan
    note: str = ""  # a sentence for the user
    live: Live | None = None  # the concept as it is now; good until the trainer goes on


@dataclass
class Trained:
    """A taught concept."""

    pairs: dict[str, Pair]
    moments: Moments  # C_t
    full_layers: list[str]  # had no room left: trained without the hard complement
    steps: int = 0  # fewer than were asked for where the training was ended early
    losses: list[float] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)  # of the lower level: norm of dL/dA
    gradients: list[float] = field(default_factory=list)  # of the upper level: norm of the Riemannian gradient


R = TypeVar("R")


Steps = Generator[Progress, str | None, R]  # takes "keep", which ends a training after the step that was reported last


def finish(steps: Steps[R], tell: Callable[[Progress], str | None] = lambda progress: None) -> R:
    """Runs a generator to its end and returns its result; `tell` sees the progress and may answer "keep"."""
    answer = None
    with closing(steps):
        while True:
            try:
                progress = steps.send(answer)
            except StopIteration as end:
                return end.value
            answer = tell(progress)


def layer_rank(width: int, cap: int, capacity: int) -> int:
    """The rank that lets `capacity` concepts be orthogonal within a quarter of a layer's input width, at most `cap`.

    The last concepts of a layer that is used up get the directions in which nothing happens; see docs/results.md.
    """
    return max(1, min(cap, width // (4 * capacity)))


def measure(
    denoiser: Denoiser, layers: Mapping[str, nn.Module], batches: Iterable[Batch], count: int
) -> Generator[Progress, None, Moments]:
    """Moments of the layers' inputs on noised training pictures, on the bare model."""
    recorder = Recorder(layers)
    for done, batch in enumerate(batches, 1):
        with torch.no_grad(), recorder.attached():
            denoiser(denoiser.add_noise(batch.x0, batch.noise, batch.sigma), batch.sigma, batch.cond)
        yield Progress("measuring", done, count)
    return recorder.moments()


def measure_concept(
    denoiser: Denoiser, layers: Mapping[str, nn.Module], batches: Batches
) -> Generator[Progress, None, Moments]:
    """C_t, from the first batches of a training."""
    forwards = -(-MEASURED_SAMPLES // batches.size)
    return measure(denoiser, layers, (batches.next() for _ in range(forwards)), forwards)


def measure_prior(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    shape: Sequence[int],
    conds: Sequence[Any],
    uncond: Any,
    seed: int = 0,
    steps: int = 6,
    batch_size: int = 4,
) -> Generator[Progress, None, Moments]:
    """G and Gamma: moments along the model's own sampling of generic captions and the empty prompt; needs no data set."""
    generator = torch.Generator().manual_seed(seed)
    recorder = Recorder(layers)
    count = -(-len(conds) // batch_size)
    for done in range(count):
        chosen = conds[done * batch_size : (done + 1) * batch_size]
        noise = torch.randn(len(chosen), *shape, generator=generator)
        with recorder.attached():
            states = list(path(denoiser, noise, chosen, [uncond] * len(chosen), steps=steps))[:-1]
            for turn, (x, sigma) in enumerate(states[::FELT_EVERY]):
                one = turn % len(chosen)
                _feel(denoiser, recorder, x[one : one + 1], sigma[None], chosen[one : one + 1], generator)
        yield Progress("measuring", done + 1, count)
    return recorder.moments()


def _feel(
    denoiser: Denoiser, recorder: Recorder, x: Tensor, sigma: Tensor, cond: Sequence[Any], generator: torch.Generator
) -> None:
    """Sends unit noise back from the weighted prediction; one picture at a time needs no more memory than training."""
    recorder.feeling = True
    with torch.enable_grad():
        predicted = denoiser(x, sigma, cond)
        probe = torch.randn(x.shape, generator=generator).to(predicted)
        (predicted * probe * expand(denoiser.loss_weight(sigma).sqrt(), x)).sum().backward()
    recorder.feeling = False


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
    bases = [concept[name].B.double() for concept in earlier if name in concept]
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


def check_latents(latents: Sequence[Tensor]) -> None:
    for number, latent in enumerate(latents, 1):
        if not latent.isfinite().all():
            raise SeqLoRAError(f"Picture {number} was encoded to values that are not numbers; run the VAE in float32.")


@contextmanager
def memory_advice(settings: Settings) -> Iterator[None]:
    """Says what to lower when the device runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        if not known and not any(words in str(error) for words in ("out of memory", "allocate memory")):
            raise
        raise SeqLoRAError(
            f"The device ran out of memory; lower batch_size (now {settings.batch_size}), the pictures' size "
            "or the library's rank, or choose fewer targets."
        ) from error


def start_basis(
    settings: Settings, name: str, rank: int, earlier: Tensor, own: Moments, others: Moments | None, rng: torch.Generator
) -> Tensor:
    if settings.basis_start == "random":
        return random_basis(len(earlier), rank, earlier, rng)
    if settings.basis_start == "pca" or others is None:
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
) -> Steps[Trained]:
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
    free = settings.orthogonality == "free"
    constraints = [None if free else _constraint(stack, constrained) for stack in stacks]
    penalties = (
        [interference_of(s, others, prior, settings.weighting) for s in stacks]
        if prior is not None and others is not None and settings.interference
        else []
    )
    strength = settings.interference * planned
    overlaps = _overlaps(stacks, earlier) if settings.overlap and earlier else []
    context = Context(stacks, () if settings.context == "modular" else earlier)
    optimizer = BilevelOptimizer(
        stacks,
        constraints,
        Rates(settings.learning_rate, settings.basis_learning_rate),
        settings.steps,
        settings.schedule,
        settings.inner_steps,
    )
    result = Trained({}, own, full_layers)
    live = Live(stacks, context, earlier, own, earlier_moments, prior)
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
                on = _draw(settings.context, context.count, rng)
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


def _recorded(result: Trained) -> dict[str, Tensor]:
    return {key: torch.tensor(getattr(result, key), dtype=torch.float64) for key in RECORDED}


def orthonormalised(pair: Pair) -> Pair:
    """The same A B' with an orthonormal B: concept files are all alike, also those of plain LoRA."""
    basis, triangle = torch.linalg.qr(pair.B.double())
    return Pair((pair.A.double() @ triangle.mT).float(), basis.float())


def _everything_else(prior: Moments | None, earlier: Moments | None, count: int) -> Moments | None:
    """R = (G + S / (t - 1)) / 2: what the base model can do weighs as much as all earlier concepts, however many these are."""
    if prior is None or earlier is None or not count:
        return prior
    return (prior + earlier * (1 / count)) * 0.5


def _constraint(stack: Stack, directions: Mapping[str, Tensor]) -> Constraint:
    return Constraint(_stack_padded([directions[name] for name in stack.names]).to(stack.B))


def _overlaps(stacks: Sequence[Stack], earlier: Sequence[Concept]) -> list[Tensor]:
    return [
        _stack_padded([torch.cat([c[name].B for c in earlier if name in c], 1) for name in stack.names]).to(stack.B)
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
