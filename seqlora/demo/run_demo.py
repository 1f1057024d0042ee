"""`seqlora demo`: eight concepts taught one after another, alone and all together, beside plain LoRA.

Everything is computed here, from the shipped demo model and held-out emoji; the picture and the figures come from one run.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..diffusion.model import NO_TRIGGERS
from ..diffusion.sampling import euler
from ..errors import SeqLoRAError
from ..library.store import Library
from ..lora.compose import compose
from ..lora.types import LoRAPair, Triggers
from ..method.metrics import basis_error, crosstalk
from ..settings import Settings, method_settings
from ..training.progress import Progress, run_to_end
from ..training.request import TrainingRequest
from ..training.train import train_steps
from .classifier import recognise
from .demo_model import DemoModel
from .pictures import Emoji, all_emoji, concept_pictures, held_out_emoji, trigger_word

PICTURES = 5  # per concept
SAMPLES = 4  # per concept and row
# Plain LoRA's rate is the best of those in demo_model/tune.py, on emoji that the demo does not use; see docs/demo.md.
DEMO_SETTINGS = Settings().resolved("demo")
PLAIN_SETTINGS = DEMO_SETTINGS.with_(learning_rate=3e-3, basis_learning_rate=3e-3)
ROWS = ("reference", "alone", "all together, SeqLoRA", "all together, plain LoRA")


def demo_concepts(count: int, seed: int) -> list[Emoji]:
    most = len(held_out_emoji())
    if not 1 <= count <= most:
        raise SeqLoRAError(f"{count} concepts cannot be taught: the demo has {most} emoji to teach", f"ask for 1 to {most}")
    return random.Random(seed).sample(list(held_out_emoji()), count)


def request_of(emoji: Emoji, count: int = PICTURES, seed: int = 0) -> TrainingRequest:
    pictures, backgrounds = concept_pictures(emoji, count, seed)
    captions = [f"a photo of {trigger_word(emoji)} {emoji.class_word} on a {name} background" for name in backgrounds]
    return TrainingRequest(emoji.name, trigger_word(emoji), emoji.class_word, list((pictures.movedim(1, -1) + 1) / 2), captions)


def teach_all(
    folder: Path,
    concepts: Sequence[Emoji],
    settings: Settings,
    model: DemoModel,
    rank: int,
    tell: Callable[[str, Progress], None],
) -> Library:
    library = Library.create(folder, rank=rank, capacity=16, targets="attention and mlp")
    for emoji in concepts:
        library = run_to_end(train_steps(library, request_of(emoji), settings, model), partial(tell, emoji.name)).library
    return library


@torch.inference_mode()
def draw(
    model: DemoModel,
    composed: Mapping[str, LoRAPair],
    prompts: Sequence[str],
    samples: int,
    seed: int,
    triggers: Triggers = NO_TRIGGERS,
) -> Tensor:
    """Pictures (prompts, samples, H, W, 3); the same seeds for the same prompts, whatever the model holds."""
    conds = [cond for cond in model.encode_captions(prompts, triggers) for _ in range(samples)]
    uncond = model.encode_captions([""]) * len(conds)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(conds), *model.latent_shape, generator=generator)
    with model.using(composed):
        latents = torch.cat([euler(model.denoiser, n, c, u) for n, c, u in _chunks(noise, conds, uncond, 64)])
    return model.decode(latents).unflatten(0, (len(prompts), samples))


def _chunks(noise: Tensor, conds: list, uncond: list, size: int) -> Iterator[tuple[Tensor, list, list]]:
    for i in range(0, len(conds), size):
        yield noise[i : i + size], conds[i : i + size], uncond[i : i + size]


def recognised(pictures: Tensor, concepts: Sequence[Emoji]) -> Tensor:
    """(concepts, samples) whether the classifier names the concept, among all emoji it knows."""
    wanted = torch.tensor([all_emoji().index(emoji) for emoji in concepts])
    flat = pictures.flatten(0, 1).movedim(-1, 1) * 2 - 1
    return recognise(flat).reshape(pictures.shape[:2]) == wanted[:, None]


def run_demo(out: Path, count: int = 8, seed: int = 0, rank: int = 4, say: Callable[[str], None] = print) -> dict:
    """Teaches, draws, measures; writes demo.png and demo.json under `out` and returns the figures.

    Raises SeqLoRAError for more concepts than there are emoji to teach, or none.
    """
    began, concepts = time.monotonic(), demo_concepts(count, seed)
    out.mkdir(parents=True, exist_ok=True)
    model = DemoModel()
    prompts = [f"a photo of {trigger_word(e)} {e.class_word}" for e in concepts]
    libraries: dict[str, Library] = {}
    seconds: dict[str, float] = {}
    for method, base in (("seqlora", DEMO_SETTINGS), ("lora", PLAIN_SETTINGS)):
        start = time.monotonic()
        shutil.rmtree(out / f"{method}-library", ignore_errors=True)  # of an earlier demo
        say(f"Teaching {count} concepts with {method} ...")
        libraries[method] = teach_all(
            out / f"{method}-library", concepts, method_settings(method, base), model, rank, _teller(say, len(concepts))
        )
        seconds[method] = time.monotonic() - start
    held = {method: [library.load(e.name) for e in concepts] for method, library in libraries.items()}
    say("Drawing ...")
    alone, together = {}, {}
    for method, concepts_held in held.items():
        everything = compose([(concept, 1.0) for concept in concepts_held])
        words = libraries[method].triggers(libraries[method].names)
        pairs = zip(concepts_held, prompts, strict=True)
        alone[method] = torch.cat([draw(model, concept, [p], SAMPLES, seed, words) for concept, p in pairs])
        together[method] = torch.cat([draw(model, everything, [p], SAMPLES, seed, words) for p in prompts])
    figures: dict = {"concepts": [e.name for e in concepts], "rank": rank, "settings": asdict(DEMO_SETTINGS)}
    for method in held:
        own, all_on = recognised(alone[method], concepts), recognised(together[method], concepts)
        table = crosstalk(held[method], [libraries[method].moments(e.name) for e in concepts])
        across, within = basis_error(held[method])
        figures[method] = {
            "recognised_alone": float(own.float().mean()),
            "recognised_together": float(all_on.float().mean()),
            "concepts_recognised_alone": _majority(own),
            "concepts_kept_together": int(((own.float().mean(1) >= 0.5) & (all_on.float().mean(1) >= 0.5)).sum()),
            "crosstalk": float((table.sum() - table.trace()) / max(1, count * (count - 1))),
            "largest_overlap_entry": across,
            "largest_orthonormality_error": within,
            "seconds": round(seconds[method], 1),
        }
    figures["seconds"] = round(time.monotonic() - began, 1)
    references = torch.cat([(concept_pictures(e, 1, 99)[0].movedim(1, -1) + 1) / 2 for e in concepts])
    rows = [references, alone["seqlora"][:, 0], together["seqlora"][:, 0], together["lora"][:, 0]]
    sheet(rows, [e.name for e in concepts]).save(out / "demo.png")
    (out / "demo.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def _majority(hits: Tensor) -> int:
    return int((hits.float().mean(1) >= 0.5).sum())


def _teller(say: Callable[[str], None], count: int) -> Callable[[str, Progress], None]:
    done: list[str] = []

    def tell(name: str, progress: Progress) -> None:
        if progress.phase == "training" and progress.step == progress.steps:
            done.append(name)
            say(f"  {len(done)} of {count}: {name} (loss {progress.loss:.3f})")

    return tell


def sheet(rows: Sequence[Tensor], names: Sequence[str], scale: int = 2, margin: int = 150) -> Image.Image:
    """A labelled grid of pictures: one column per concept, one row per way of drawing it."""
    side = rows[0].shape[1] * scale
    page = Image.new("RGB", (margin + side * len(names), 24 + side * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    for column, name in enumerate(names):
        pen.text((margin + column * side + 6, 6), name[: side // 6], fill="black")
    for row, (pictures, label) in enumerate(zip(rows, ROWS, strict=True)):
        for line, part in enumerate(label.split(", ")):
            pen.text((8, 24 + row * side + side // 2 - 12 + 14 * line), part, fill="black")
        for column, picture in enumerate(pictures):
            image = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
            page.paste(image.resize((side, side), Image.Resampling.LANCZOS), (margin + column * side, 24 + row * side))
    return page


def summary(figures: Mapping) -> str:
    lines = [f"{'':34}{'SeqLoRA':>10}{'plain LoRA':>12}"]
    for what, key, form in (
        ("pictures recognised, alone", "recognised_alone", "{:.0%}"),
        ("pictures recognised, all together", "recognised_together", "{:.0%}"),
        ("concepts recognised alone", "concepts_recognised_alone", "{}"),
        ("of these also all together", "concepts_kept_together", "{}"),
        ("crosstalk (mean, off diagonal)", "crosstalk", "{:.3f}"),
        ("largest entry of B_i'B_j", "largest_overlap_entry", "{:.1e}"),
        ("seconds to teach", "seconds", "{}"),
    ):
        lines.append(f"{what:34}{form.format(figures['seqlora'][key]):>10}{form.format(figures['lora'][key]):>12}")
    return "\n".join(lines)
