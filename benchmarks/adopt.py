"""LoRAs that were made each by itself, adopted into one library: what is left of each with all of them on, and what it takes.

    . tools/env.sh && OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.adopt

Plain LoRAs of emoji are taught to the demo model independently and written as kohya files; `seqlora adopt` takes them from
there. The demo's classifier counts pictures that it recognises. What was done already is found again in `--out`; one JSON file
holds all figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from seqlora.demo.demo_model import DemoModel
from seqlora.demo.pictures import Emoji, trigger_word
from seqlora.demo.run_demo import PLAIN_SETTINGS, demo_concepts, draw, recognised, request_of
from seqlora.io.atomic import write_bytes
from seqlora.library.export import export_composed
from seqlora.library.store import Library
from seqlora.lora.compose import compose
from seqlora.lora.read import read_lora
from seqlora.lora.targets import layer_shapes
from seqlora.lora.types import Concept
from seqlora.method.metrics import basis_error
from seqlora.settings import Settings, method_settings
from seqlora.training.adopt import adopted_file
from seqlora.training.progress import run_to_end
from seqlora.training.request import TrainingRequest
from seqlora.training.train import train_steps

PLAIN_RANK = 8
RANK, CAPACITY, TARGETS = 4, 16, "attention and mlp"
SAMPLES = 4  # pictures of each concept and row
SEED = 7
ROWS = {"plain": "plain LoRAs", "adopted": "adopted"}
Figures = dict[str, Any]


class Bench:
    def __init__(self, out: Path, concepts: Sequence[Emoji], say: Callable[[str], None]):
        self.out, self.concepts, self.say, self.model = out, concepts, say, DemoModel()
        self.file = out / "adopt.json"
        out.mkdir(parents=True, exist_ok=True)
        self.done: Figures = json.loads(self.file.read_text()) if self.file.exists() else {}

    def once(self, row: str, name: str, make: Callable[[], Mapping[str, Any]]) -> Figures:
        """What `make` gives, and the processor time that it took; kept at once, and not done again."""
        rows = self.done.setdefault(row, {})
        if name not in rows:
            began = time.process_time()
            rows[name] = dict(make())
            rows[name]["seconds"] = round(time.process_time() - began, 2)
            write_bytes(self.file, json.dumps(self.done, indent=1).encode())
            self.say(f"{ROWS.get(row, row)}: {name} {rows[name]}")
        return rows[name]

    def plain(self, emoji: Emoji) -> Path:
        """The file of a LoRA that knows nothing of the others."""
        path = self.out / "loras" / f"{emoji.name}.safetensors"

        def teach() -> Figures:
            library = Library.create(self.out / "plain" / emoji.name, PLAIN_RANK, 1, TARGETS)
            settings = method_settings("lora", PLAIN_SETTINGS)
            taught = run_to_end(train_steps(library, request_of(emoji), settings, self.model))
            export_composed(taught.library, {emoji.name: 1.0}, path, "kohya", "fp32")
            return {}

        self.once("plain", emoji.name, teach)
        return path

    def adopted(self) -> Library:
        """All of them in one library, one after the other."""
        path = Library.create(self.out / "adopted", RANK, CAPACITY, TARGETS).path
        for emoji in self.concepts:
            self.once("adopted", emoji.name, partial(self._adopt, path, emoji))
        return Library.open(path)

    def _adopt(self, path: Path, emoji: Emoji) -> Figures:
        request = TrainingRequest(emoji.name, trigger_word(emoji), emoji.class_word)
        steps = train_steps(
            Library.open(path), request, Settings(), self.model, adoption=adopted_file(self.model, self.plain(emoji))
        )
        return {"kept": run_to_end(steps).report.kept}

    def look(self, row: str, concepts: Sequence[Concept]) -> None:
        """How many pictures of each concept are recognised, alone and with all of them on."""
        everything = compose([(concept, 1.0) for concept in concepts])
        for emoji, concept in zip(self.concepts, concepts, strict=True):
            for how, on in (("alone", concept), ("together", everything)):
                self.once(f"{row} {how}", emoji.name, partial(self._recognised, emoji, on))

    def _recognised(self, emoji: Emoji, on: Concept) -> Figures:
        pictures = draw(self.model, on, [f"a photo of {trigger_word(emoji)} {emoji.class_word}"], SAMPLES, SEED)
        return {"recognised": float(recognised(pictures, [emoji]).float().mean())}

    def run(self) -> str:
        files = [self.plain(emoji) for emoji in self.concepts]
        shapes = layer_shapes(self.model.linear_layers())
        held = {"plain": [read_lora(load_file(file), shapes, self.model.layout).change for file in files]}
        library = self.adopted()
        held["adopted"] = [library.load(emoji.name) for emoji in self.concepts]
        for row, concepts in held.items():
            self.look(row, concepts)
        return self.table(held)

    def table(self, held: Mapping[str, Sequence[Concept]]) -> str:
        def each(row: str, figure: str) -> torch.Tensor:
            return torch.tensor([self.done[row][emoji.name][figure] for emoji in self.concepts])

        own = each("plain alone", "recognised")
        head = (f"{len(own)} LoRAs", "alone", "together", "of LoRA alone", "concepts >= 90%", "kept", "|B_i'B_j|", "CPU s each")
        lines = [f"{head[0]:24}" + "".join(f"{cell:>17}" for cell in head[1:])]
        for row, called in ROWS.items():
            alone, together, seconds = (
                each(f"{row} alone", "recognised"),
                each(f"{row} together", "recognised"),
                each(row, "seconds")[1:],  # the first one to be adopted measures the base model too
            )
            whole = int((together >= 0.9 * own).sum())
            kept = f"{each(row, 'kept').mean():.0%}" if row == "adopted" else ""
            overlap = f"{basis_error(held[row])[0]:.1e}" if row != "plain" else ""
            cells = (
                *(f"{float(alone.mean()):.1%}", f"{float(together.mean()):.1%}", f"{float(together.mean() / own.mean()):.1%}"),
                *(f"{whole} of {len(own)}", kept, overlap, f"{float(seconds.mean()):.1f}"),
            )
            lines.append(f"{called:24}" + "".join(f"{cell:>17}" for cell in cells))
        times = {row: float(each(row, "seconds")[1:].mean()) for row in ROWS}
        return "\n".join([*lines, f"adopting one takes {times['adopted'] / times['plain']:.2f} of the time of teaching one"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/adopt"))
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="which emoji; 5 is what steps and weights were chosen on")
    args = parser.parse_args()
    print(Bench(args.out, demo_concepts(args.count, args.seed), partial(print, file=sys.stderr, flush=True)).run())


if __name__ == "__main__":
    main()
