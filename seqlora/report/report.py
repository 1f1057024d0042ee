"""What a library's concepts do to themselves, to each other and to the model, as one table; no model is run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SeqLoRAError
from ..library.store import Library
from ..lora.types import Concept, LoRAPair
from ..method import metrics
from ..method.bound import change_energy, check_probability, forgetting_bound, interference_energies, share
from ..method.moments import Moments


def library_report(
    library: Library, selection: Mapping[str, float], delta: float = 0.05, constant: float = 1.0
) -> dict[str, Any]:
    """The selected concepts (name -> strength) together, ready for JSON; reads only their files and moments.

    Energies are summed over layers before they are divided. Where a share has nothing to be a share of, it is None. Raises
    SeqLoRAError, before anything is read, for an empty selection and for a `delta` or `constant` that cannot be (see bound.py).
    """
    check_probability(delta, constant)
    if not selection:
        raise SeqLoRAError("No concept is selected", "name at least one, or '*' for all")
    concepts = [_scaled(library.load(name), strength) for name, strength in selection.items()]
    moments = [library.moments(name, on_disk=True) for name in selection]
    prior = library.prior(on_disk=True)
    found = _over_layers(concepts, moments, prior, delta, constant)
    entries = []
    for j, (name, strength) in enumerate(selection.items()):
        record = library.find(name)
        entries.append(
            {
                "name": name,
                "strength": strength,
                "rank": max((A.shape[1] for A, _ in concepts[j].values()), default=0),
                **found.of[j].shares(prior is not None),
                "change_norm": metrics.change_norm(concepts[j]),
                "full_layers": list(record.full_layers),
            }
        )
    return {
        "library": library.path.name,
        "delta": delta,
        "sub_gaussian_constant": constant,
        "layers": len(concepts[0]),
        "concepts": entries,
        "overlap": (found.overlap / found.overlap.diagonal()[:, None]).tolist(),
        "crosstalk": (found.crosstalk / found.crosstalk.diagonal()[None, :].clamp(min=1e-30)).tolist(),
        "capacity": capacity_used(library),
    }


def capacity_used(library: Library) -> dict[str, Any]:
    """How much of each kind of layer the whole library takes up, and for how many more concepts there is room.

    Per kind and width n of the layers' inputs: `used` is the share of the n directions that concepts have, `room` how many more
    fit in at right angles to all of these.
    """
    layers = library.base.layers if library.base else {}
    count = len(library.concepts)
    groups: dict[tuple[str, int], list[int]] = {}
    for layer, rank in library.ranks(layers).items():
        groups.setdefault((kind_of(layer), layers[layer][1]), []).append(rank)
    return {
        "concepts": count,
        "planned": library.capacity,
        "groups": [
            {
                "kind": kind,
                "width": width,
                "layers": len(ranks),
                "rank": ranks[0],
                "used": min(1.0, count * ranks[0] / width),
                "room": max(0, width // ranks[0] - count),
            }
            for (kind, width), ranks in groups.items()
        ],
    }


def kind_of(layer: str) -> str:
    """What a layer does, by its name."""
    return next(kind for kind, pattern in _KINDS if pattern.search(layer))


_KINDS = [
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("cross attention", r"\battn2\b|cross_?attn"),
        ("self attention", r"\battn1\b|self_?attn"),
        ("attention and mlp in one", r"\blinear[12]\b"),
        ("mlp", r"\bff\b|ff_context|mlp|feed_?forward|\bfc[12]\b|\bw[123]\b"),
        ("projections", r"\bproj_(in|out)\b"),
        ("attention", ""),
    )
]


def _scaled(concept: Concept, strength: float) -> Concept:
    """A copy of nothing where the strength is 1: the files stay on disk until a layer's turn comes."""
    return concept if strength == 1 else {layer: LoRAPair(strength * A, B) for layer, (A, B) in concept.items()}


def _over_layers(
    concepts: Sequence[Concept], moments: Sequence[Moments], prior: Moments | None, delta: float, constant: float
) -> _Found:
    """Layers that read the same input one after another: its moments' factors serve them all, and then make room."""
    zeros = torch.zeros(len(concepts), len(concepts), dtype=torch.float64)
    found = _Found([_Sums() for _ in concepts], zeros, zeros.clone())
    groups: dict[str, list[str]] = {}
    for layer in concepts[0]:
        groups.setdefault(moments[0].input_of[layer], []).append(layer)
    for layers in groups.values():
        for layer in layers:
            _add_layer(found, concepts, moments, prior, layer, delta, constant)
        for seen in (*moments, *([prior] if prior else [])):
            seen[layers[0]].forget()
    return found


def _add_layer(
    found: _Found,
    concepts: Sequence[Concept],
    moments: Sequence[Moments],
    prior: Moments | None,
    layer: str,
    delta: float,
    constant: float,
) -> None:
    found.overlap += metrics.overlap_in(concepts, layer)
    found.crosstalk += metrics.crosstalk_in(concepts, moments, layer)
    for j, size in interference_energies(concepts, dict(enumerate(moments)), layer).items():
        one, basis = found.of[j], concepts[j][layer].basis
        one.add(layer, size.trace, forgetting_bound(*size, delta, constant), moments[j].output_energy[layer])
        one.own += change_energy(concepts[j], moments[j], layer)
        one.inside += float(moments[j][layer].energy(basis).trace())
        one.inputs += float(moments[j][layer].diagonal.double().sum())
        if prior is not None:
            one.on_prior += change_energy(concepts[j], prior, layer)
            one.prior_output += prior.output_energy[layer]


@dataclass
class _Sums:
    """Of one concept, over layers."""

    expected: float = 0.0
    bound: float = 0.0
    own: float = 0.0
    output: float = 0.0
    inside: float = 0.0
    inputs: float = 0.0
    on_prior: float = 0.0
    prior_output: float = 0.0
    worst: str | None = None
    worst_share: float = 0.0

    def add(self, layer: str, expected: float, bound: float, output: float) -> None:
        self.expected, self.bound, self.output = self.expected + expected, self.bound + bound, self.output + output
        of_output = share(bound, output)
        if of_output is not None and of_output > self.worst_share:
            self.worst, self.worst_share = layer, of_output

    def shares(self, has_prior: bool) -> dict[str, Any]:
        """Of its own change and of the model's own output; the worst layer has most of its own output."""
        return {
            "captured_energy": self.inside / self.inputs,
            "disturbance": share(self.expected, self.own),
            "disturbance_bound": share(self.bound, self.own),
            "disturbance_of_output": share(self.expected, self.output),
            "disturbance_bound_of_output": share(self.bound, self.output),
            "worst_layer": self.worst,
            "worst_layer_bound_of_output": self.worst_share,
            # What a concept does to generic prompts, as a share of the model's own output on them.
            "prior_disturbance": share(self.on_prior, self.prior_output) if has_prior else None,
        }


@dataclass
class _Found:
    of: list[_Sums]
    overlap: Tensor  # (t, t) energies
    crosstalk: Tensor
