"""What a library's concepts do to themselves, to each other and to the model, as one table; no model is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import metrics
from .adapter import Concept, Pair
from .bound import change_energy, check_probability, disturbance, forgetting_bound, share
from .errors import SeqLoRAError
from .library import Library
from .moments import Moments


def library_report(
    library: Library, selection: Mapping[str, float], delta: float = 0.05, constant: float = 1.0
) -> dict[str, Any]:
    """The selected concepts (name -> strength) together, ready for JSON; reads only their files and moments.

    Energies are summed over layers before they are divided. Where a share has nothing to be a share of, it is None. Raises
    SeqLoRAError, before anything is read, for an empty selection and for a `delta` or `constant` that cannot be (see bound.py).
    """
    check_probability(delta, constant)
    if not selection:
        raise SeqLoRAError("No concept is selected; name at least one, or '*' for all.")
    concepts = [_scaled(library.load(name), strength) for name, strength in selection.items()]
    moments = [library.moments(name) for name in selection]
    prior = library.prior()
    entries = []
    for j, (name, strength) in enumerate(selection.items()):
        record = library.find(name)
        entries.append(
            {
                "name": name,
                "strength": strength,
                "rank": max((A.shape[1] for A, _ in concepts[j].values()), default=0),
                "captured_energy": metrics.captured_energy(concepts[j], moments[j]),
                **_disturbed(concepts, j, moments[j], delta, constant),
                "prior_disturbance": _on_prior(concepts[j], prior) if prior else None,
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
        "overlap": metrics.overlap(concepts).tolist(),
        "crosstalk": metrics.crosstalk(concepts, moments).tolist(),
    }


def _scaled(concept: Concept, strength: float) -> Concept:
    return {layer: Pair(strength * A, B) for layer, (A, B) in concept.items()}


def _disturbed(concepts: Sequence[Concept], j: int, moments: Moments, delta: float, constant: float) -> dict[str, Any]:
    """Shares of the concept's own change and of the model's own output; the worst layer is the one with most of its output."""
    expected = bound = own = output = worst_share = 0.0
    worst = None
    for layer in concepts[j]:
        size = disturbance(concepts, j, moments, layer)
        limit = forgetting_bound(*size, delta, constant)
        expected, bound = expected + size.trace, bound + limit
        own += change_energy(concepts[j], moments, layer)
        output += moments.output_energy[layer]
        of_output = share(limit, moments.output_energy[layer])
        if of_output is not None and of_output > worst_share:
            worst, worst_share = layer, of_output
    return {
        "disturbance": share(expected, own),
        "disturbance_bound": share(bound, own),
        "disturbance_of_output": share(expected, output),
        "disturbance_bound_of_output": share(bound, output),
        "worst_layer": worst,
        "worst_layer_bound_of_output": worst_share,
    }


def _on_prior(concept: Concept, prior: Moments) -> float | None:
    """What a concept does to generic prompts, as a share of the model's own output on them."""
    change = sum(change_energy(concept, prior, layer) for layer in concept)
    return share(change, sum(prior.output_energy[layer] for layer in concept))
