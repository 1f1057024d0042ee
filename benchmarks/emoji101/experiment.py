"""A run: one method's concepts taught in one order, and everything measured on it, all kept on disk."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from seqlora.backends.model import HeadlessModel
from seqlora.diffusion.batches import Batches
from seqlora.io.atomic import write_bytes
from seqlora.lora.compose import compose
from seqlora.lora.ranks import layer_rank
from seqlora.method import metrics
from seqlora.method.basis import contrastive_basis
from seqlora.method.bound import check_bound, residual_interference
from seqlora.method.moments import Moments
from seqlora.training.measure import measure, measure_concept
from seqlora.training.progress import run_to_end
from seqlora.training.trainer import RECORDED

from . import measures, records, subjects
from .methods import BATCH_SIZE, CAPACITY, METHODS, RANK, TUNING
from .model import load
from .sequence import TARGETS, Lessons, Run, prior_of, run_key

SIZES = (1, 4, 16, 32, 64, 101)
SUBSETS = 20
PAIRS = 12
CHECKED = 4  # concepts whose forgetting bound is checked
STRIP = 10  # concepts that are shown
PARTS = 6  # of a training, over which its curves are averaged: single steps are noise


@dataclass
class Bench:
    """The model, what it sees on its own, where runs are kept and where their measures are filed. Made once in each process."""

    architecture: str
    out: Path
    results: Path = records.FOLDER

    def __post_init__(self) -> None:
        self.model: HeadlessModel = load(self.architecture)
        self.prior: Moments = prior_of(self.model)

    def run(self, key: str, tuned: Mapping[str, float], seed: int, count: int, test: bool = True) -> Run:
        """A tuning run's library is planned for as many concepts as it teaches, and so is as crowded as a test run's."""
        method = METHODS[key]
        settings = method.settings(tuned)
        planned = method.planned if test else count
        capacity = method.capacity if test else max(1, method.capacity * count // CAPACITY)
        emoji = subjects.concepts(count, seed) if test else subjects.tuning_concepts(count)
        widths = {name: int(layer.in_features) for name, layer in self.model.layers(TARGETS).items()}  # type: ignore[arg-type]
        ranks = {name: layer_rank(width, RANK, capacity) for name, width in widths.items()}
        if method.contrast:
            ranks = {name: rank for name, rank in ranks.items() if self.contrast[name] >= method.contrast}
        if method.together:  # one adapter with the ranks of all; passes grow with the concepts, so the rate must fall
            fewer = {rate: getattr(settings, rate) * TUNING / count for rate in ("learning_rate", "basis_learning_rate")}
            settings = settings.with_(**fewer)
            ranks = {name: min(widths[name], rank * count) for name, rank in ranks.items()}
        name = f"{key}-{run_key(settings, ranks, planned)}"
        folder = self.out / self.architecture / ("runs" if test else "tuning") / name / f"seed{seed}"
        return Run(self.model, self.prior, emoji, settings, ranks, planned, seed, folder, method.together)

    @cached_property
    def contrast(self) -> dict[str, float]:
        """How many times more of a concept than of everything else a layer sees in the direction that a basis would start
        with; the mean over a few emoji that no test uses, before any was taught."""
        layers = self.model.layers(TARGETS)
        found: dict[str, float] = {}
        for number, emoji in enumerate(subjects.tuning_concepts(CHECKED)):
            rng = torch.Generator().manual_seed(number)
            batches = Batches(subjects.training_examples(self.model, emoji, 0), self.model.denoiser, BATCH_SIZE, rng)
            own = run_to_end(measure_concept(self.model.denoiser, layers, batches))
            for name in layers:
                nothing = torch.zeros(own[name].width, 0, dtype=torch.float64)
                B = contrastive_basis(own[name], self.prior[name], 1, nothing, rng)
                here, elsewhere = (float(m[name].energy(B)) for m in (own, self.prior))
                found[name] = found.get(name, 0.0) + here / elsewhere / CHECKED
        return found

    def result(self, run: Run, count: int, full: bool = True) -> dict[str, Any]:
        """Teaches what is missing and measures what is missing; a second call only reads."""
        path = run.folder / f"measures-{count}{'' if full else '-short'}.json"
        if path.exists():
            return json.loads(path.read_text())
        partial = run.folder / "partial.json"
        found: dict[str, Any] = json.loads(partial.read_text()) if partial.exists() else {}
        found = {size: measured for size, measured in found.items() if int(size) <= count}
        for lessons in run.teach():
            taught = len(lessons.taught)
            if full and taught in SIZES and str(taught) not in found:
                found[str(taught)] = self.composed(lessons)
                write_bytes(partial, json.dumps(found).encode())
        result: dict[str, Any] = {
            **records.origin(self.architecture),
            "sizes": found or {str(count): self.composed(lessons, short=True)},
        }
        result["alone"] = result["sizes"][str(count)] if run.together else self.alone(lessons)
        result["prior of the base"] = measures.base_accuracy(self.model, {})
        result["step_seconds"] = [about["step_seconds"] for about in lessons.about]
        result["full_layers"] = [about["full_layers"] for about in lessons.about]
        if full and not run.together:
            result |= self.others(lessons, run.seed)
            self.strip(lessons).save(run.folder / f"strip-{count}.png")
        write_bytes(path, json.dumps(result).encode())
        return result

    def alone(self, lessons: Lessons) -> dict[str, list]:
        """Each concept with only its own adapter on."""
        among = subjects.references(lessons.emoji)
        found: dict[str, list] = {}
        for i, (emoji, concept) in enumerate(zip(lessons.emoji, lessons.concepts, strict=False)):
            pictures = measures.draw(self.model, concept, [subjects.prompt(emoji)], triggers=lessons.triggers)
            judged = measures.judge(pictures, [emoji], among, [i])
            loss = measures.denoising(self.model, concept, subjects.held_out_examples(self.model, emoji, lessons.triggers))
            for key, value in (judged | {"loss": [loss]}).items():
                found.setdefault(key, []).extend(value)
        return found

    def composed(self, lessons: Lessons, short: bool = False) -> dict[str, Any]:
        """All concepts so far, summed."""
        emoji, everything, words = lessons.taught, lessons.composed(), lessons.triggers
        pictures = measures.draw(self.model, everything, [subjects.prompt(e) for e in emoji], triggers=words)
        found: dict[str, Any] = measures.judge(pictures, emoji, subjects.references(emoji), range(len(emoji)))
        found["prior"] = measures.base_accuracy(self.model, everything)
        if not short:
            held_out = [subjects.held_out_examples(self.model, e, words) for e in emoji]
            found["loss"] = [measures.denoising(self.model, everything, examples) for examples in held_out]
        return found

    def others(self, lessons: Lessons, seed: int) -> dict[str, Any]:
        """What needs only one look, at the end of a run."""
        concepts, moments = lessons.concepts, lessons.moments
        count = len(concepts)
        across, within = metrics.basis_error(concepts[:16])
        tables = metrics.crosstalk(concepts, moments), metrics.crosstalk(concepts, moments, self.prior)
        mean, felt = (float((table.sum() - table.trace()) / max(1, count * (count - 1))) for table in tables)
        return {
            "crosstalk": mean,
            "crosstalk felt": felt,
            "crosstalk table": tables[0][:32, :32].tolist(),
            "overlap error": across,
            "orthonormality error": within,
            "captured": [metrics.captured_energy(c, m) for c, m in zip(concepts, moments, strict=True)],
            "change": [metrics.change_norm(c) for c in concepts],
            "residual": [[r.basis, r.interference] for r in residual_interference(concepts[:16], moments[:16])],
            "subset pairs": self.subsets(lessons, seed),
            "pairs": self.pairs(lessons, seed),
            "bytes": sum(p.up.numel() * 4 + p.basis.numel() * 4 for p in concepts[0].values()),
            "curves": {name: [in_parts(about[name]) for about in lessons.about[:16] if name in about] for name in RECORDED},
        }

    def strip(self, lessons: Lessons) -> Image.Image:
        """The first concepts in a row, all of the library on: above as they are, below as drawn."""
        emoji = lessons.taught[:STRIP]
        prompts, words = [subjects.prompt(e) for e in emoji], lessons.triggers
        drawn = measures.draw(self.model, lessons.composed(), prompts, 1, words)[:, 0]
        real = torch.cat([subjects.concept_pictures(e, 1, 9001)[0] for e in emoji])
        grid = torch.cat([torch.cat(list(row), 2) for row in (real, drawn)], 1)
        return Image.fromarray(((grid + 1) * 127.5).clamp(0, 255).byte().movedim(0, -1).numpy())

    def subsets(self, lessons: Lessons, seed: int) -> dict[str, list[list[float]]]:
        """Pairs of cosines: a concept drawn beside random others, and alone."""
        pick, count = random.Random(seed), len(lessons.concepts)
        among, words = subjects.references(lessons.taught), lessons.triggers
        found: dict[str, list[list[float]]] = {}
        for size in (4, 16):
            if size > count:
                continue
            for _ in range(SUBSETS):
                chosen = pick.sample(range(count), size)
                i = chosen[0]
                prompt = [subjects.prompt(lessons.emoji[i])]
                composed = compose([(lessons.concepts[j], 1.0) for j in chosen])
                pair = [
                    measures.judge(pictures, [lessons.emoji[i]], among, [i])["cosine"][0]
                    for on in (composed, lessons.concepts[i])
                    for pictures in [measures.draw(self.model, on, prompt, triggers=words)]
                ]
                found.setdefault(str(size), []).append(pair)
        return found

    def pairs(self, lessons: Lessons, seed: int) -> dict[str, float]:
        """Two concepts side by side, with all of the library on: shares of pictures with both, one, or the sides swapped."""
        emoji = lessons.taught
        if len(emoji) < 2:
            return {}
        chosen = subjects.pairs(emoji, PAIRS, seed)
        prompts = [subjects.pair_prompt(emoji[a], emoji[b]) for a, b in chosen]
        pictures = measures.draw(self.model, lessons.composed(), prompts, 2, lessons.triggers)
        return measures.judge_pairs(pictures, chosen, subjects.references(emoji))

    def file(self, key: str, run: Run, tuned: Mapping[str, float], count: int) -> None:
        """Files what a finished run measured for the results page, in the place of what it measured before."""
        measured = self.result(run, count)
        if (run.folder / f"bound-{count}.json").exists():
            measured |= {"bound": bound_in_short(self.bound(run, count))}
        path = records.write_run(self.results, self.architecture, key, tuned, run.seed, count, measured)
        strip = run.folder / f"strip-{count}.png"
        if run.seed == 0 and strip.exists():
            Image.open(strip).save(path.with_suffix(".webp"), quality=85)

    def bound(self, run: Run, count: int, delta: float = 0.05) -> list[dict[str, float]]:
        """The forgetting bound against what unseen pictures of a few concepts meet, with all the others on."""
        path = run.folder / f"bound-{count}.json"
        if path.exists():
            return json.loads(path.read_text())
        *_, lessons = run.teach()
        found = []
        layers = self.model.layers(TARGETS)
        for j in range(min(CHECKED, count)):
            examples = subjects.held_out_examples(self.model, lessons.emoji[j], lessons.triggers)
            others = subjects.examples(self.model, lessons.emoji[j], subjects.HELD_OUT, 9002, lessons.triggers)
            batches = Batches(others, self.model.denoiser, 8, torch.Generator().manual_seed(j))
            unseen = run_to_end(measure(self.model.denoiser, layers, (batches.next() for _ in range(8)), 8))
            for source, moments in (("as stored", lessons.moments[j]), ("measured on other unseen pictures", unseen)):
                again = Batches(examples, self.model.denoiser, 8, torch.Generator().manual_seed(100 + j))
                checks = check_bound(
                    self.model.denoiser, layers, [again.next() for _ in range(4)], lessons.concepts, j, moments, delta, 1.0
                )
                for layer, check in checks.items():
                    found.append({"concept": j, "moments": source, "layer": layer, **check._asdict()})
        write_bytes(path, json.dumps(found).encode())
        return found


def in_parts(curve: Sequence[float]) -> list[float]:
    """Means of one part of a training after another."""
    size = max(1, len(curve) // PARTS)
    return [statistics.fmean(part) for i in range(PARTS) if (part := curve[i * size : (i + 1) * size])]


def bound_in_short(checks: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of a run's checks of the bound, by where the moments are from."""
    found = {}
    for source in dict.fromkeys(check["moments"] for check in checks):
        chosen = [check for check in checks if check["moments"] == source]
        found[source] = {
            "checked": len(chosen),
            "within": statistics.fmean(c["within"] for c in chosen),
            "layers within": statistics.fmean(c["within"] >= 0.95 for c in chosen),
            "of bound": statistics.fmean(c["of_bound"] for c in chosen),
            "constant": max(c["constant"] for c in chosen),
        }
    return found


def best(results: list[tuple[Mapping[str, float], dict[str, Any]]], keeps: float = 0.0) -> Mapping[str, float]:
    """Of a method's settings, the one whose composed concepts look most like themselves; of those that keep the share `keeps`
    of the base emoji, if any does."""

    def score(pair: tuple[Mapping[str, float], dict[str, Any]]) -> tuple[bool, float]:
        figures = tuning_figures(pair[1])
        return figures["base"] >= keeps, figures["identity"]

    kept = [pair for pair in results if score(pair)[0]]
    return max(kept or results, key=lambda pair: score(pair)[1])[0]


def tuning_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Of a tuning run: mean identity of its concepts, summed; share of the base emoji kept."""
    (only,) = result["sizes"].values()
    return {"identity": statistics.fmean(only["cosine"]), "base": only["prior"] / result["prior of the base"]}
