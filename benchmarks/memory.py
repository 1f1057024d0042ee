"""What grows with a library, at the shapes of real models: memory and time of what a training does before its first step, of
drawing the earlier concepts anew, of a composition and of a report. Random weights on a CPU, so that it runs anywhere; no model
predicts anything.

    python -m benchmarks.memory --model sdxl --concepts 31

Of each shape only every twentieth layer is there (--every), and what is proportional to their number is told for all of them.
Memory is that of the process without what it can read again from files; time is processor time.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqlora.diffusion.batches import Examples
from seqlora.library.manifest import Base
from seqlora.library.store import Library
from seqlora.lora.targets import layer_shapes
from seqlora.lora.types import LoRAPair
from seqlora.method.moments import Moment, Moments, Recorder, test_matrix
from seqlora.method.trained import TrainedConcept
from seqlora.report.report import library_report
from seqlora.settings import Settings
from seqlora.training.start import Surroundings, start_pair
from seqlora.training.trainer import MOST_ACTIVE, ConceptTrainer, draw_active

GB = 1e9
RANK, PLANNED, SAMPLES = 16, 32, 80
REPORTED = 8  # concepts in the report
# (m, n): how many layers of "attention and mlp" have a weight of this shape.
SDXL = {
    (640, 640): 60 + 10,
    (640, 2048): 20,
    (5120, 640): 10,
    (640, 2560): 10,
    (1280, 1280): 360 + 12,
    (1280, 2048): 120,
    (10240, 1280): 60,
    (1280, 5120): 60,
}
FLUX = {
    (9216, 3072): 38,
    (3072, 3072): 38,
    (12288, 3072): 38,
    (3072, 12288): 38,
    (21504, 3072): 38,
    (3072, 15360): 38,
}
MODELS = {"sdxl": SDXL, "flux": FLUX}
TOKENS = {"sdxl": 1024, "flux": 4352}  # that the widest layers see


class NoModel:
    """Stands for a denoiser where none is asked for a prediction."""

    device, dtype = torch.device("cpu"), torch.bfloat16

    def sample_sigmas(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, generator=generator)


def layers_of(model: str, every: int) -> dict[str, nn.Module]:
    """One in `every` of each shape, without weights."""
    return {
        f"diffusion_model.blocks.{i}.{m}x{n}.attn": nn.Linear(n, m, bias=False, device="meta")
        for (m, n), count in MODELS[model].items()
        for i in range(max(1, round(count / every)))
    }


def random_moment(n: int, rng: torch.Generator) -> Moment:
    rows = torch.randn(SAMPLES, n, generator=rng)
    omega = test_matrix(n)
    return Moment(rows.mT @ (rows if omega is None else rows @ omega) / SAMPLES, rows.square().mean(0))


def random_moments(shapes: dict[str, tuple[int, int]], rng: torch.Generator, felt: bool = False) -> Moments:
    by_input = {name: random_moment(n, rng) for name, (_, n) in shapes.items()}
    felt_by = {name: random_moment(m, rng) for name, (m, _) in shapes.items()} if felt else {}
    return Moments(by_input, {name: name for name in shapes}, dict.fromkeys(shapes, 1.0), felt_by)


def make_library(path: Path, shapes: dict[str, tuple[int, int]], count: int) -> None:
    """Random concepts at right angles to each other, with moments of their own."""
    rng = torch.Generator().manual_seed(0)
    library = Library.create(path, RANK, max(PLANNED, count + 1), "attention and mlp")
    ranks = library.ranks(shapes)
    bases = {name: torch.linalg.qr(torch.randn(n, ranks[name] * count, generator=rng))[0] for name, (_, n) in shapes.items()}
    with library.writing() as writer:
        base = Base({"family": "other"}, {name: list(shape) for name, shape in shapes.items()}, "")
        writer.bind(base, random_moments(shapes, rng, felt=True))
        for number in range(count):
            pairs = {}
            for name, (m, _) in shapes.items():
                columns = slice(number * ranks[name], (number + 1) * ranks[name])
                pairs[name] = LoRAPair(1e-3 * torch.randn(m, ranks[name], generator=rng), bases[name][:, columns].contiguous())
            writer.add(f"concept {number}", f"zyx{number}", "thing", TrainedConcept(pairs, random_moments(shapes, rng), []), {})


def own_memory() -> float:
    """Bytes of the process that are nowhere on disk (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem")))


class Watched:
    """Processor seconds and memory of what is done while open: most at a time, and what is left afterwards."""

    def __enter__(self) -> Watched:
        gc.collect()
        self.before, self.most, self._open = own_memory(), 0.0, True
        self._thread = threading.Thread(target=self._watch)
        self.began = time.process_time()
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._open:
            self.most = max(self.most, own_memory())
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self.began
        self._open = False
        self._thread.join()
        gc.collect()
        self.left = own_memory() - self.before
        self.most = max(self.most, own_memory()) - self.before


def training(path: Path, layers: dict[str, nn.Module]) -> dict[str, float]:
    """From opening the library to the first step, and drawing the earlier concepts anew; the model itself is not there."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # what torch imports for its first optimiser is no part of this
    with Watched() as start:
        library = Library.open(path)
        earlier = [library.load(name) for name in library.names]
        prior, moments = library.prior(), library.moments_sum()
        beside = Surroundings(earlier, prior, moments, library.capacity)
        settings, shapes = Settings(steps=100, batch_size=1, learning_rate=1e-4), layer_shapes(layers)
        ranks, rng = library.ranks(shapes), torch.Generator().manual_seed(0)
        examples = Examples([torch.zeros(4, 8, 8)], [None])
        trainer = ConceptTrainer(NoModel(), layers, examples, settings, ranks, beside)  # type: ignore[arg-type]
        others, own = beside.others, random_moments(shapes, rng)
        pairs = {n: start_pair(settings, n, shapes[n], ranks[n], F, own, others, rng, {}) for n, F in trainer.free_of.items()}
        for moment in own.by_input.values():
            moment._factor = None
        trainer._build(own, pairs)
        del others, pairs
    device = [t for stack in trainer.stacks for t in (stack.A, stack.B, stack.A, stack.A, stack.A, stack.B, stack.B, stack.B)]
    penalties = [t for one in trainer.penalties for t in vars(one).values()]
    constraints = [one.earlier for one in trainer.optimizer.constraints if one]
    trainer.active.select(range(min(MOST_ACTIVE, trainer.active.count)))
    seconds = []
    for _ in range(5):
        on = draw_active("cumulative", trainer.active.count, rng)[: MOST_ACTIVE // 2]
        began = time.process_time()
        trainer.active.select(on)
        seconds.append(time.process_time() - began)
    return {
        "start, s": start.seconds,
        "start, most GB": start.most / GB,
        "RAM and device together while it trains, GB": start.left / GB,
        "adapter, gradients and Adam, GB": _bytes(device) / GB,
        "penalty, GB": _bytes(penalties) / GB,
        "complement, GB": _bytes(constraints) / GB,
        f"drawing {MOST_ACTIVE // 2} earlier concepts, s": sorted(seconds)[2],
    }


def _bytes(tensors: list[Tensor]) -> float:
    return sum(t.numel() * t.element_size() for t in tensors)


def composing(path: Path, layers: dict[str, nn.Module]) -> dict[str, float]:
    """All concepts summed, and again at another strength."""
    library = Library.open(path)
    with Watched() as first:
        composed = library.compose(dict.fromkeys(library.names, 1.0))
    del composed
    with Watched() as again:
        composed = library.compose(dict.fromkeys(library.names, 0.5))
    del composed
    return {"compose, s": first.seconds, "compose, most GB": first.most / GB, "compose at another strength, s": again.seconds}


def reporting(path: Path, layers: dict[str, nn.Module]) -> dict[str, float]:
    library = Library.open(path)
    with Watched() as report:
        library_report(library, dict.fromkeys(library.names[:REPORTED], 1.0))
    return {f"report of {REPORTED}, s": report.seconds, f"report of {REPORTED}, most GB": report.most / GB}


def taking_up(model: str) -> dict[str, float]:
    """What the moments of the widest layer take beside its input and output, in bf16, of one picture of 1024 pixels."""
    m, n = max(MODELS[model], key=math.prod)
    layer = nn.Linear(1, 1).requires_grad_(False)
    x, output = torch.randn(TOKENS[model], n).bfloat16(), torch.randn(TOKENS[model], m).bfloat16()
    recorder = Recorder({"layer": layer})
    recorder._see("layer", layer, x[:1], output[:1])  # makes what is made once
    with Watched() as seen:
        recorder._see("layer", layer, x, output)
    return {f"measuring a {m} x {n} layer, most GB": seen.most / GB}


def _apart(look: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
    """In a process of its own: what one leaves in memory is no part of the next."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as pool:
        return pool.apply(look, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), nargs="+", default=list(MODELS))
    parser.add_argument("--concepts", type=int, default=PLANNED - 1, help="that are in the library already")
    parser.add_argument("--every", type=int, default=20, help="one layer of so many is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for model in args.model:
        layers = layers_of(model, args.every)
        whole = sum(MODELS[model].values()) / len(layers)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "library"
            make_library(path, layer_shapes(layers), args.concepts)
            print(f"{model}, {sum(MODELS[model].values())} layers, rank {RANK}, beside {args.concepts} concepts")
            for name, part in (("concepts", "concepts/0001-*"), ("moments", "moments/0001.*")):
                size = sum(file.stat().st_size for file in path.glob(part))
                print(f"  {name} of one concept on disk, GB: {whole * size / GB:.3f}")
            for look in (training, composing, reporting):
                for what, value in _apart(look, path, layers).items():
                    print(f"  {what}: {whole * value:.3g}", flush=True)
            for what, value in _apart(taking_up, model).items():
                print(f"  {what}: {value:.3g}", flush=True)


if __name__ == "__main__":
    main()
