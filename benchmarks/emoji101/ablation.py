"""Where a whole library costs the base model its own emoji: the library at lower strength, and without one kind of layer."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

from seqlora.lora.compose import compose

from . import measures, subjects
from .experiment import Bench
from .sequence import Run

STRENGTHS = (1.0, 0.85, 0.7)
MOST = 64  # concepts; of all 101 too little of the base model is left to compare


def kind(layer: str) -> str:
    """A layer's place in its block, such as attn2.to_v."""
    return re.sub(r".*(transformer_blocks\.\d+\.|\.(?=proj_))", "", layer)


def parts(bench: Bench, run: Run, count: int) -> list[dict[str, Any]]:
    """Share of the base emoji kept and the concepts' identity, one picture each, with the run's first `count` concepts on."""
    lessons = next(islice(run.teach(), count - 1, None))
    emoji, prompts = lessons.taught, [subjects.prompt(e) for e in lessons.taught]
    among, bare = subjects.references(emoji), measures.base_accuracy(bench.model, {})
    kinds = sorted({kind(layer) for layer in lessons.concepts[0]})
    rows = []
    for strength, without in [*((s, "") for s in STRENGTHS), *((1.0, k) for k in kinds)]:
        left = [{layer: pair for layer, pair in c.items() if kind(layer) != without} for c in lessons.concepts]
        composed = compose([(concept, strength) for concept in left])
        judged = measures.judge(measures.draw(bench.model, composed, prompts, 1, lessons.triggers), emoji, among, range(count))
        base = measures.base_accuracy(bench.model, composed) / bare
        rows.append({"strength": strength, "without": without, "base": base, "cosine": judged["cosine"]})
    return rows
