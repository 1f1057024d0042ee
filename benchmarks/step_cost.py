"""What a training step of SeqLoRA costs beside the same step of plain LoRA: same layers, rank and batch, steps taken in turn.

python -m benchmarks.step_cost
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from seqlora.diffusion.batches import Examples
from seqlora.diffusion.denoiser import Denoiser
from seqlora.lora.targets import layer_shapes
from seqlora.lora.types import Concept
from seqlora.method.moments import Moments
from seqlora.method.trained import TrainedConcept
from seqlora.settings import Settings, method_settings
from seqlora.training.measure import measure_prior
from seqlora.training.progress import TrainingSteps, run_to_end
from seqlora.training.trainer import train_concept


def step_seconds(runs: Mapping[str, TrainingSteps[TrainedConcept]], steps: int) -> dict[str, float]:
    """Median seconds of a training step of each run; closes them. After all have begun to train they take turns, so that a slow
    moment of the machine hits all of them."""
    for run in runs.values():
        while next(run).phase != "training":
            pass
        next(run), next(run)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(steps):
        for name, run in runs.items():
            start = time.perf_counter()
            next(run)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    for run in runs.values():
        run.close()
    return {name: statistics.median(times) for name, times in seconds.items()}


def compare(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    examples: Examples,
    prior: Moments,
    rank: int,
    batch_size: int,
    steps: int,
    earlier: Sequence[Concept] = (),
    earlier_moments: Moments | None = None,
) -> dict[str, float]:
    """Median step seconds of plain LoRA, and the ratios of SeqLoRA's to it (with and without earlier concepts on)."""
    ranks = {name: rank for name in layer_shapes(layers)}
    base = Settings(steps=10 * steps + 100, batch_size=batch_size, learning_rate=1e-3, basis_learning_rate=3e-4)
    runs = {}
    for name, method, co_training in (
        ("lora", "lora", "modular"),
        ("seqlora", "seqlora", "modular"),
        ("seqlora beside earlier concepts", "seqlora", "stochastic"),
    ):
        settings = method_settings(method, base).with_(co_training=co_training)
        runs[name] = train_concept(denoiser, layers, examples, settings, ranks, earlier, prior, earlier_moments)
    seconds = step_seconds(runs, steps)
    return {"lora seconds": seconds["lora"]} | {n: seconds[n] / seconds["lora"] for n in seconds if n != "lora"}


def compare_after(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    examples: Examples,
    shape: Sequence[int],
    generic: Sequence,
    uncond,
    rank: int = 4,
    batch_size: int = 8,
    steps: int = 20,
    concepts: int = 8,
) -> dict[str, float]:
    """`compare` for a library that holds `concepts` concepts (taught for a moment: their values do not change the cost)."""
    prior = run_to_end(measure_prior(denoiser, layers, shape, generic, uncond, steps=2))
    ranks = {name: rank for name in layer_shapes(layers)}
    earlier: list[Concept] = []
    moments: Moments | None = None
    for seed in range(concepts):
        settings = Settings(steps=1, batch_size=2, learning_rate=1e-3, seed=seed, co_training="modular")
        trained = run_to_end(train_concept(denoiser, layers, examples, settings, ranks, earlier, prior, moments))
        earlier.append(trained.pairs)
        moments = trained.moments if moments is None else moments + trained.moments
    return compare(denoiser, layers, examples, prior, rank, batch_size, steps, earlier, moments)


def describe(title: str, result: Mapping[str, float]) -> str:
    lines = [f"{title}: {result['lora seconds'] * 1000:.0f} ms a step of plain LoRA"]
    lines += [f"  {name}: {ratio:.3f} x plain LoRA" for name, ratio in result.items() if name != "lora seconds"]
    return "\n".join(lines)


def main() -> None:
    from seqlora.demo.demo_model import DemoModel
    from seqlora.demo.run_demo import demo_concepts, request_of
    from tests.support.hosts import find_host, run_in_host

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    model = DemoModel()
    lesson = request_of(demo_concepts(1, 0)[0])
    examples = Examples(model.encode_pictures(lesson.pictures), model.encode_captions(lesson.captions))
    uncond, *generic = model.encode_captions(["", *model.generic_captions[:4]])
    result = compare_after(
        model.denoiser, model.layers("attention and mlp"), examples, model.latent_shape, generic, uncond, steps=args.steps
    )
    print(describe("demo model, batch 8, rank 4", result))
    if find_host():
        with tempfile.TemporaryDirectory() as folder:
            print(
                describe(
                    "SD1.5-class model in ComfyUI, batch 4, rank 4",
                    run_in_host(Path(__file__).with_name("host_step_cost.py"), folder, args.steps),
                )
            )


if __name__ == "__main__":
    main()
