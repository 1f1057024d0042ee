"""A concept between two steps of its training, for whoever watches. Looking costs what it costs when somebody looks, and
changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..lora.attach import ActiveConcepts, Stack
from ..lora.types import Concept, Triggers
from ..method.moments import Moments


@dataclass
class TrainingSnapshot:
    stacks: Sequence[Stack]
    active: ActiveConcepts
    earlier: Sequence[Concept]
    own: Moments  # what the layers see of this concept's pictures
    others: Moments | None  # of all earlier concepts' pictures together
    prior: Moments | None  # of which `output_curvature` weighs the layers' outputs
    triggers: Callable[[], Triggers] = dict  # the vectors that stand for this concept's trigger, if it learns any

    @torch.no_grad()
    def figures(self) -> tuple[float, float | None]:
        """Largest entry of |B_i'B| with any earlier concept i and of |B'B - I|; and the crosstalk: what the concept changes on
        the earlier ones' inputs, on average over these, over what it changes on its own, tr(Gamma A B' C B A') summed over
        layers (without the base model's moments Gamma = I). None where there is nothing earlier, or no moments of it.
        """
        worst, there, here = 0.0, 0.0, 0.0
        curvature = self.prior.output_curvature if self.prior else {}
        for name, (A, B) in ((name, pair) for stack in self.stacks for name, pair in stack.pairs().items()):
            gram = B.mT @ B
            gram.diagonal().sub_(1)
            entries = [gram, *(concept[name].basis.mT @ B for concept in self.earlier if name in concept)]
            worst = max(worst, *(float(entry.abs().max()) for entry in entries))
            if self.earlier and self.others is not None:
                change = curvature[name].energy(A) if name in curvature else (A.mT @ A).double()
                there += float((change * self.others[name].energy(B)).sum())
                here += float((change * self.own[name].energy(B)).sum())
        return worst, there / here / len(self.earlier) if here > 0 else None

    @contextmanager
    def all_active(self) -> Iterator[None]:
        """While open, the model draws with this concept and all earlier ones, as it will where all of them are applied."""
        active, before = self.active, self.active.active
        whole = active if active.count == len(self.earlier) else ActiveConcepts(self.stacks, self.earlier)
        try:
            whole.select(range(whole.count))
            active.active = whole.active
            yield
        finally:
            active.active = before
