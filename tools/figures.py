"""Writes docs/figures.md and the pictures beside it: every figure that the documents quote, computed now.

    . tools/env.sh && .venv/bin/python tools/figures.py

Takes about half an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from seqlora.demo.demo_model import DemoModel
from seqlora.demo.run_demo import DEMO_SETTINGS, demo_concepts, run_demo, summary, teach_all
from seqlora.library.export import export_composed
from seqlora.library.store import Library
from seqlora.lora.compose import compose
from seqlora.lora.formats import from_native
from seqlora.lora.types import Concept, LoRAPair
from seqlora.method.metrics import basis_error

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "figures.md"


def base_accuracy(limit: int | None) -> str:
    command = [sys.executable, str(ROOT / "demo_model" / "evaluate.py")]
    if limit:
        command += ["--limit", str(limit)]
    else:
        command += ["--sheet", "docs/pictures/base_samples.png"]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def demo() -> str:
    figures = run_demo(ROOT / "build" / "demo")
    shutil.copy(ROOT / "build" / "demo" / "demo.png", ROOT / "docs" / "pictures" / "demo.png")
    return summary(figures)


def orthogonality(library: Library) -> str:
    """After 16 concepts: in the fp32 files of the library and in fp16 exports of each."""
    stored = [library.load(name) for name in library.names]
    exported: list[Concept] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in library.names:
            path = export_composed(library, {name: 1.0}, Path(folder) / f"{len(exported)}.safetensors", "comfyui", "fp16")
            exported.append(from_native(load_file(path)))
    lines = [f"{len(stored)} concepts on the demo model"]
    for what, concepts in (("fp32 files", stored), ("fp16 exports", exported)):
        across, within = basis_error(concepts)
        lines.append(f"{what:14} max |B_i'B_j| = {across:.1e}   max |B_i'B_i - I| = {within:.1e}")
    return "\n".join(lines)


def composition_error(library: Library) -> str:
    """The concatenated adapter against the float64 sum of s_i A_i B_i', relative, the worst layer."""
    concepts = [library.load(name) for name in library.names]
    strengths = [0.5 + i / len(concepts) for i in range(len(concepts))]
    composed = compose(list(zip(concepts, strengths, strict=True)))
    worst = 0.0
    for layer, pair in composed.items():
        total = torch.stack([s * _change(c[layer]) for c, s in zip(concepts, strengths, strict=True)]).sum(0)
        found = pair.up @ pair.basis.mT
        worst = max(worst, float((found.double() - total).norm() / total.norm()))
    return f"largest relative error of a layer's sum of {len(concepts)} concepts: {worst:.1e}"


def _change(pair: LoRAPair) -> torch.Tensor:
    return pair.up.double() @ pair.basis.double().mT


def printed_by(module: str, malloc: bool = True) -> str:
    """What a benchmark prints, on one thread; without `malloc` not as under env.sh, where freed memory stays in the process."""
    env = {name: value for name, value in os.environ.items() if malloc or not name.startswith("MALLOC_")}
    env |= {"OMP_NUM_THREADS": "1"} | ({} if malloc else {"MALLOC_ARENA_MAX": "1"})
    command = [sys.executable, "-m", module]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=env).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="base emoji to sample (all, and the sample sheet, if not given)")
    parser.add_argument("--only", default="", help="words of the titles whose figures are computed anew; the others stay")
    args = parser.parse_args()
    processor = (
        re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    )
    parts = {
        "Base model: emoji named right by the classifier, sampled from their captions": lambda: base_accuracy(args.limit),
        "`seqlora demo`": demo,
    }
    with tempfile.TemporaryDirectory() as folder:
        model = DemoModel()
        sixteen = demo_concepts(16, 1)
        taught: list[Library] = []

        def sixteen_concepts() -> Library:
            if not taught:
                settings = DEMO_SETTINGS.with_(steps=20)
                taught.append(teach_all(Path(folder) / "sixteen", sixteen, settings, model, 4, lambda *_: None))
            return taught[0]

        parts["Orthogonality"] = lambda: orthogonality(sixteen_concepts())
        parts["Composition"] = lambda: composition_error(sixteen_concepts())
        parts["Cost of a training step (`make bench-step`; steps taken in turn, processor time of one thread)"] = lambda: (
            printed_by("benchmarks.step_cost")
        )
        parts["What grows with a library (`make bench-memory`; random weights, one thread)"] = lambda: printed_by(
            "benchmarks.memory", malloc=False
        )
        parts["Adopting (`make bench-adopt`; plain LoRAs of emoji taught independently, 4 pictures of each)"] = lambda: (
            printed_by("benchmarks.adopt")
        )
        page = ["# Figures", "", "Written by `python tools/figures.py`; not edited by hand.", ""]
        where = processor.group(1) if processor else platform.machine()
        here = f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, no GPU."
        section = re.compile(r"^## ([^\n]*)\n\n(.*?)(?=\n\n## |\n*\Z)", re.DOTALL | re.MULTILINE)
        before = dict(section.findall(OUT.read_text(encoding="utf-8")))
        for title, compute in parts.items():
            print(title, flush=True)
            anew = args.only in title or title not in before
            text = f"{here}\n\n```\n{compute()}\n```" if anew else before[title]
            print(text, flush=True)
            page += [f"## {title}", "", text, ""]
    OUT.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
