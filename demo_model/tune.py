"""Finds the demo's learning rates for both methods on held-out emoji that the demo does not use, and prints the table.

. tools/env.sh && .venv/bin/python demo_model/tune.py
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from pathlib import Path

import torch

from seqlora.demo.demo_model import DemoModel
from seqlora.demo.pictures import held_out_emoji, trigger_word
from seqlora.demo.run_demo import DEMO_SETTINGS, demo_concepts, draw, recognised, teach_all
from seqlora.lora.compose import compose
from seqlora.settings import Settings, method_settings

GRID = {
    "seqlora": [
        {"learning_rate": rate, "basis_learning_rate": 3e-3, "interference_weight": strength}
        for rate, strength in itertools.product((1e-2, 2e-2), (0.2, 0.4, 0.8))
    ],
    "lora": [{"learning_rate": rate, "basis_learning_rate": rate} for rate in (1.5e-3, 3e-3, 5e-3, 1e-2)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--method", choices=list(GRID), nargs="*", default=list(GRID))
    args = parser.parse_args()
    others = [emoji for emoji in held_out_emoji() if emoji not in demo_concepts(8, 0)]
    concepts = random.Random(1).sample(others, args.concepts)
    prompts = [f"a photo of {trigger_word(e)} {e.class_word}" for e in concepts]
    model = DemoModel()
    print(f"{'method':10}{'settings':70}{'alone':>8}{'together':>10}")
    for method in args.method:
        for changes in GRID[method]:
            settings: Settings = method_settings(method, DEMO_SETTINGS).with_(**changes)
            with tempfile.TemporaryDirectory() as folder:
                library = teach_all(Path(folder) / "tuning", concepts, settings, model, 4, lambda *_: None)
                held, words = [library.load(e.name) for e in concepts], library.triggers(library.names)
            alone = torch.cat([draw(model, c, [p], args.samples, 0, words) for c, p in zip(held, prompts, strict=True)])
            together = draw(model, compose([(c, 1.0) for c in held]), prompts, args.samples, 0, words)
            shares = [float(recognised(pictures, concepts).float().mean()) for pictures in (alone, together)]
            print(f"{method:10}{changes!s:70}{shares[0]:8.0%}{shares[1]:10.0%}", flush=True)


if __name__ == "__main__":
    main()
