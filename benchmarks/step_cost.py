"""What a training step of SeqLoRA costs beside the same step of plain LoRA and beside a forward and backward of the bare model:
same layers, pictures and batch, steps taken in turn.

python -m benchmarks.step_cost
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from seqlora.diffusion.batches import Batches, Examples, denoising_loss
from seqlora.diffusion.denoiser import Denoiser
from seqlora.lora.targets import layer_shapes
from seqlora.lora.types import Concept, LoRAPair
from seqlora.settings import Settings, method_settings
from seqlora.training.measure import measure_prior
from seqlora.training.progress import run_to_end
from seqlora.training.start import Surroundings
from seqlora.training.trainer import STEPS_BETWEEN_DRAWS, ConceptTrainer

BARE, LORA, FIRST, LATE = "bare", "plain LoRA", "SeqLoRA, first concept", "SeqLoRA, beside 16 concepts"


ROUND = STEPS_BETWEEN_DRAWS  # steps in a row: one of them draws the earlier concepts anew
WARM = 1  # rounds that are not counted


class Steps(Protocol):
    """What can take steps while it is attached to the model."""

    def attached(self) -> AbstractContextManager[None]: ...
    def step(self) -> object: ...


class Bare:
    """The frozen model alone: a forward, and a backward to the first of the layers that are taught."""

    def __init__(self, denoiser: Denoiser, layers: Mapping[str, nn.Module], examples: Examples, batch_size: int):
        self.denoiser, self.layers = denoiser, layers
        self.batches = Batches(examples, denoiser, batch_size, torch.Generator().manual_seed(0))
        self._asked = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [layer.register_forward_hook(self._ask) for layer in self.layers.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _ask(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """No weight of a frozen model asks for a gradient, so the first layer's output does."""
        if self._asked:
            return None
        self._asked = True
        return output + output.new_zeros(()).requires_grad_()

    def step(self) -> None:
        self._asked = False
        with torch.enable_grad():
            denoising_loss(self.denoiser, self.batches.next()).backward()


def step_seconds(runs: Mapping[str, Steps], rounds: int) -> dict[str, float]:
    """Median seconds of a step of each run, processor time on a CPU. They take turns of ROUND steps, so that a slow moment of
    the machine hits all of them; while one does, no hook of another is on the model."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(WARM + rounds):
        for name, run in runs.items():
            with run.attached():
                start = _now()
                for _ in range(ROUND):
                    run.step()
                seconds[name].append((_now() - start) / ROUND)
    return {name: statistics.median(times[WARM:]) for name, times in seconds.items()}


def _now() -> float:
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def started(*args: Any) -> ConceptTrainer:
    """A trainer before its first step; takes what ConceptTrainer takes."""
    trainer = ConceptTrainer(*args)
    run_to_end(trainer.measure())
    return trainer


def compare(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    examples: Examples,
    beside: Surroundings,
    rank: int,
    batch_size: int,
    rounds: int,
) -> dict[str, float]:
    """Median step seconds of the bare model's forward and backward, of plain LoRA, and of SeqLoRA with no earlier concept and
    with those of `beside`."""
    ranks = {name: rank for name in layer_shapes(layers)}
    base = Settings(steps=10_000, batch_size=batch_size, learning_rate=1e-3, basis_learning_rate=3e-4)
    runs: dict[str, Steps] = {BARE: Bare(denoiser, layers, examples, batch_size)}
    first = replace(beside, earlier=(), earlier_moments=None)
    for name, method, place in ((LORA, "lora", first), (FIRST, "seqlora", first), (LATE, "seqlora", beside)):
        runs[name] = started(denoiser, layers, examples, method_settings(method, base), ranks, place)
    return step_seconds(runs, rounds)


def compare_after(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    examples: Examples,
    shape: Sequence[int],
    generic: Sequence[Any],
    uncond: Any,
    rank: int = 4,
    batch_size: int = 8,
    rounds: int = 8,
    concepts: int = 16,
) -> dict[str, float]:
    """`compare` beside `concepts` random concepts: their values do not change the cost."""
    prior = run_to_end(measure_prior(denoiser, layers, shape, generic, uncond, steps=2))
    earlier = random_concepts(layer_shapes(layers), rank, concepts)
    beside = Surroundings(earlier, prior, prior * concepts, concepts)
    return compare(denoiser, layers, examples, beside, rank, batch_size, rounds)


def random_concepts(shapes: Mapping[str, tuple[int, int]], rank: int, count: int) -> list[Concept]:
    """Concepts with small random coefficients, every basis at right angles to all others."""
    rng = torch.Generator().manual_seed(0)
    concepts: list[dict[str, LoRAPair]] = [{} for _ in range(count)]
    for name, (m, n) in shapes.items():
        directions, _ = torch.linalg.qr(torch.randn(n, rank * count, generator=rng))
        for concept, basis in zip(concepts, directions.split(rank, 1), strict=True):
            concept[name] = LoRAPair(1e-3 * torch.randn(m, rank, generator=rng), basis.contiguous())
    return list(concepts)


def describe(title: str, seconds: Mapping[str, float]) -> str:
    """The steps beside the bare model's and beside plain LoRA's, and what the bars say."""
    lines = [f"{title}: {seconds[BARE] * 1000:.0f} ms a forward and backward of the bare model"]
    for name, most in ((LORA, None), (FIRST, 1.15), (LATE, 1.20)):
        ratio = seconds[name] / seconds[BARE]
        lines.append(
            f"  {name}: {ratio:.3f} x bare" + ("" if name == LORA else f", {seconds[name] / seconds[LORA]:.3f} x plain LoRA")
        )
        if most is not None:
            lines[-1] += f" (bar: at most {most:.2f} x bare, {'met' if ratio <= most else 'NOT met'})"
    return "\n".join(lines)


def main() -> None:
    from seqlora.demo.demo_model import DemoModel
    from seqlora.demo.run_demo import demo_concepts, request_of
    from tests.support.hosts import find_host, run_in_host

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help=f"of {ROUND} steps each")
    args = parser.parse_args()
    torch.set_num_threads(1)  # processor time of several would count their waiting
    model = DemoModel()
    lesson = request_of(demo_concepts(1, 0)[0])
    examples = Examples(model.encode_pictures(lesson.pictures), model.encode_captions(lesson.captions))
    uncond, *generic = model.encode_captions(["", *model.generic_captions[:4]])
    result = compare_after(
        model.denoiser, model.layers("attention and mlp"), examples, model.latent_shape, generic, uncond, rounds=args.rounds
    )
    print(describe("demo model, batch 8, rank 4", result))
    if find_host():
        with tempfile.TemporaryDirectory() as folder:
            print(
                describe(
                    "SD1.5-class model in ComfyUI, batch 4, rank 4",
                    run_in_host(Path(__file__).with_name("host_step_cost.py"), folder, args.rounds, timeout=3600),
                )
            )


if __name__ == "__main__":
    main()
