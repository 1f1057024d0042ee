"""How far the other concepts can push what one concept's layers say: a bound at a chosen probability, and its test on real
activations. docs/theory.md derives it and lists what it assumes.

Per layer, with x a row of the layer's input on concept j: the others add M x, M = sum over i != j of A_i B_i'. Everything here
follows from the spectrum of Sigma = M C_j M', whose non-zero part is that of a matrix no larger than the others' total rank.
All in float64, from the adapters and the stored moments; only `check_bound` runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..diffusion.batches import Batch
from ..diffusion.denoiser import Denoiser
from ..errors import SeqLoRAError
from ..lora.types import Concept, concat_bases
from .moments import Moments


class InterferenceEnergy(NamedTuple):
    """Sigma = M C_j M' of one layer, by its norms; in squared units of the layer's output."""

    trace: float  # E|M x|^2 exactly, if C_j is
    frobenius: float
    spectral: float


class Residual(NamedTuple):
    """What the other concepts' bases, alone and with their coefficients, take up of one concept's inputs."""

    basis: float  # sum over i != j of tr(B_i' C_j B_i), over tr C_j
    interference: float  # tr Sigma, over the base model's own output energy tr(W C_j W')


class Check(NamedTuple):
    """The bound of one layer against measured rows of its input."""

    rows: int
    within: float  # share of rows with |M x|^2 no larger than the bound; it promises at least 1 - delta
    mean: float  # of |M x|^2
    of_bound: float  # that mean over the bound
    of_trace: float  # that mean over tr Sigma: 1 where C_j describes these rows
    constant: float  # smallest sub-Gaussian constant with which the bound would have held for a share 1 - delta of the rows


def interference_energy(concepts: Sequence[Concept], j: int, moments: Moments, layer: str) -> InterferenceEnergy:
    """What all concepts but number j do to it on one layer. `moments` are those of concept j; zeros where j is alone."""
    return interference_energies(concepts, {j: moments}, layer)[j]


def interference_energies(
    concepts: Sequence[Concept], moments_of: Mapping[int, Moments], layer: str
) -> dict[int, InterferenceEnergy]:
    """The same for several concepts, by number, each with its moments: the factors are taken up once for all of them."""
    pairs = [concept[layer] for concept in concepts]
    B = concat_bases(concepts, layer).double()
    triangle = torch.linalg.qr(torch.cat([pair.up for pair in pairs], 1).double(), mode="r").R
    owner = torch.cat([torch.full(pair.basis.shape[1:], i) for i, pair in enumerate(pairs)])
    everything, found = triangle @ B.mT, {}
    for j, moments in moments_of.items():
        own = owner == j
        M = everything - triangle[:, own] @ B[:, own].mT
        if own.all():
            M.zero_()  # not the rounding that is left
        factor, diagonal = moments[layer].factor()
        acted = M @ factor
        if moments[layer].exact:  # d = 0: the spectrum of the smaller product
            sigma = acted @ acted.mT if acted.shape[0] <= acted.shape[1] else acted.mT @ acted
        else:
            sigma = acted @ acted.mT + (M * diagonal) @ M.mT
        values = torch.linalg.eigvalsh((sigma + sigma.mT) / 2).clamp(min=0)
        found[j] = InterferenceEnergy(float(values.sum()), float(values.norm()), float(values.max()))
    return found


def _others(concepts: Sequence[Concept], j: int, layer: str) -> tuple[Tensor, Tensor]:
    """T (min(m, R), R) and B (n, R), R the total rank of all concepts but j: |M x| = |T B' x|, since A = Q T."""
    own = concepts[j][layer]
    pairs = [concept[layer] for i, concept in enumerate(concepts) if i != j]
    A = torch.cat([own.up[:, :0], *(pair.up for pair in pairs)], 1).double()
    B = torch.cat([own.basis[:, :0], *(pair.basis for pair in pairs)], 1).double()
    return torch.linalg.qr(A, mode="r").R, B


def change_energy(concept: Concept, moments: Moments, layer: str) -> float:
    """E|A B' x|^2 of one concept on the inputs that `moments` describe."""
    A, B = (matrix.double() for matrix in concept[layer])
    return float((A.mT @ A * moments[layer].energy(B)).sum())


def check_probability(delta: float, constant: float) -> None:
    """Raises SeqLoRAError for a chance of failure or a sub-Gaussian constant that cannot be."""
    if not 0 < delta < 1:
        raise SeqLoRAError(f"delta is {delta:g}, but must lie between 0 and 1: the chance that the bound fails")
    if not 1 <= constant < math.inf:
        raise SeqLoRAError(f"The sub-Gaussian constant is {constant:g}, but no distribution has one below 1, a Gaussian's")


def forgetting_bound(trace: float, frobenius: float, spectral: float, delta: float = 0.05, constant: float = 1.0) -> float:
    """With probability 1 - delta, |M x|^2 of a row is no larger; nor is the mean over any number of a picture's rows.

    The first three are an `InterferenceEnergy`; `constant` is the sub-Gaussian constant K >= 1 of the layer's inputs. Bounds of
    several layers add up to a bound of the sum at the same delta.
    """
    check_probability(delta, constant)
    t = math.log(1 / delta)
    return constant**2 * (trace + 2 * frobenius * math.sqrt(t) + 2 * spectral * t)


def share(part: float, whole: float) -> float | None:
    """part / whole; nothing is 0 of anything, and something is no share of nothing."""
    if whole > 0:
        return part / whole
    return None if part > 0 else 0.0


def residual_interference(concepts: Sequence[Concept], moments: Sequence[Moments]) -> list[Residual]:
    """One per concept, numerators and denominators summed over layers; `moments` are the concepts' own, in the same order."""
    return [_residual(concepts, j, own) for j, own in enumerate(moments)]


def _residual(concepts: Sequence[Concept], j: int, moments: Moments) -> Residual:
    taken = inputs = interference = outputs = 0.0
    for layer in concepts[j]:
        triangle, B = _others(concepts, j, layer)
        inside = moments[layer].energy(B)
        taken += float(inside.trace())
        inputs += float(moments[layer].diagonal.double().sum())
        interference += float((triangle.mT @ triangle * inside).sum())
        outputs += moments.output_energy[layer]
    return Residual(taken / inputs, interference / outputs)


@torch.no_grad()
def check_bound(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    concepts: Sequence[Concept],
    j: int,
    moments: Moments,
    delta: float = 0.05,
    constant: float = 1.0,
) -> dict[str, Check]:
    """Measures |M x|^2 on the bare model, for every row (token) of every layer's input, against the bound.

    `batches` are pictures of concept j with noise, noise levels and conditionings: for a fair test, ones that its moments were
    not gathered from. `layers` and `concepts` as `train_concept` takes them, `moments` those of concept j. The model is left as
    it was. Returns a `Check` per layer; raises SeqLoRAError where `batches` is empty.
    """
    check_probability(delta, constant)
    squares: dict[str, list[Tensor]] = {name: [] for name in layers}

    def measure(name: str) -> Callable[..., None]:
        triangle, B = _others(concepts, j, name)

        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            change = x @ B.to(x) @ triangle.mT.to(x)
            squares[name].append(change.square().sum(1).cpu())

        return record

    handles = [module.register_forward_hook(measure(name)) for name, module in layers.items()]
    try:
        for batch in batches:
            denoiser(denoiser.add_noise(batch.x0, batch.noise, batch.sigma), batch.sigma, batch.cond)
    finally:
        for handle in handles:
            handle.remove()
    if not all(squares.values()):
        raise SeqLoRAError("There is no batch to check the bound on", "give at least one")
    return {
        name: _compared(torch.cat(found).double(), interference_energy(concepts, j, moments, name), delta, constant)
        for name, found in squares.items()
    }


def _compared(measured: Tensor, size: InterferenceEnergy, delta: float, constant: float) -> Check:
    at_one = forgetting_bound(*size, delta)
    bound = constant**2 * at_one
    mean = float(measured.mean())
    quantile = float(measured.kthvalue(math.ceil((1 - delta) * len(measured))).values)
    within = float((measured <= bound).double().mean())
    return Check(
        len(measured),
        within,
        mean,
        mean / bound if bound else 0.0,
        mean / size.trace if bound else 0.0,
        math.sqrt(quantile / at_one) if bound else 0.0,
    )
