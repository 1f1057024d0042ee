"""What a training starts from: the room that is left, the basis, the penalty, the stacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import SeqLoRAError
from ..lora.attach import Stack
from ..lora.types import Concept, LoRAPair, concat_bases
from ..method.basis import contrastive_basis, pca_basis, random_basis
from ..method.moments import Moments
from ..method.optimizer import Constraint
from ..method.penalty import Interference
from ..method.reduce import nearest_pair
from ..settings import Settings

# Largest error of F'F = I with which bases count as orthonormal: what is left of P B along F is that times F'B, so it stays at
# rounding error.
ORTHONORMAL = 1e-5
FIT_WEIGHT = 0.3  # what everything else counts for, beside the concept, in the start of a LoRA that is adopted


@dataclass(frozen=True)
class Surroundings:
    """What a concept is taught beside."""

    earlier: Sequence[Concept] = ()  # the library's concepts, in order
    prior: Moments | None = None  # G and Gamma
    earlier_moments: Moments | None = None  # S, the sum over the earlier concepts
    capacity: int = 1  # concepts that will be summed: what they change elsewhere adds up, so each must change less

    @property
    def others(self) -> Moments | None:
        """R = (G + S / (t - 1)) / 2: what the base model can do weighs as much as all earlier concepts, few or many."""
        if self.prior is None or self.earlier_moments is None or not self.earlier:
            return self.prior
        return (self.prior + self.earlier_moments * (1 / len(self.earlier))) * 0.5


def build_stacks(pairs: Mapping[str, LoRAPair], device: torch.device, dtype: torch.dtype) -> list[Stack]:
    """Stacks by (m, n, r)."""
    groups: dict[tuple[int, int, int], list[str]] = {}
    for name, (A, B) in pairs.items():
        groups.setdefault((A.shape[0], *B.shape), []).append(name)  # type: ignore[arg-type]
    stacks = []
    for names in groups.values():
        A, B = (torch.stack(parts).to(device, torch.float32) for parts in zip(*(pairs[name] for name in names), strict=True))
        stacks.append(Stack(names, A, B, dtype))
    return stacks


def earlier_directions(name: str, width: int, earlier: Sequence[Concept]) -> Tensor:
    """F (n, p): an orthonormal basis of the span of all earlier concepts' bases, fp32.

    Bases that were taught at right angles are one as they are, side by side; of others, such as plain LoRA's, one is made.
    """
    present = [concept for concept in earlier if name in concept]
    if not present:
        return torch.zeros(width, 0)
    F = concat_bases(present, name).float()
    gram = F.mT @ F
    gram.diagonal().sub_(1)
    if float(gram.abs().max()) <= ORTHONORMAL:
        return F
    left, singular, _ = torch.linalg.svd(F.double(), full_matrices=False)
    return left[:, singular > 1e-4].float()


def constrain(
    settings: Settings, shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], earlier: Sequence[Concept]
) -> tuple[dict[str, Tensor], list[str]]:
    """F of every layer, and the full layers: those without room for another orthogonal basis, whose F is empty."""
    directions, full = {}, []
    for name, (_, n) in shapes.items():
        F = earlier_directions(name, n, earlier if settings.orthogonality == "exact" else ())
        if F.shape[1] + ranks[name] > n:
            full.append(name)
            F = F[:, :0]
        directions[name] = F
    if full and settings.when_full == "refuse":
        raise SeqLoRAError(
            f"The library is full: {len(full)} layers (first {full[0]}) have no room for another concept of this rank",
            "set when_full to metric, or start a library with a larger capacity",
        )
    return directions, full


def start_pair(
    settings: Settings,
    name: str,
    shape: tuple[int, int],
    rank: int,
    earlier: Tensor,
    own: Moments,
    others: Moments | None,
    rng: torch.Generator,
    change: Concept,
) -> LoRAPair:
    """Where a layer starts: as near as there is room to what was learned elsewhere, or at no change, on a basis of its own."""
    if name in change and others is not None:
        return nearest_pair(change[name], rank, earlier.double(), own[name], others[name], FIT_WEIGHT, rng)
    return LoRAPair(torch.zeros(shape[0], rank), start_basis(settings, name, rank, earlier, own, others, rng))


def start_basis(
    settings: Settings, name: str, rank: int, earlier: Tensor, own: Moments, others: Moments | None, rng: torch.Generator
) -> Tensor:
    earlier = earlier.double()
    if settings.basis_init == "random":
        return random_basis(len(earlier), rank, earlier, rng)
    if settings.basis_init == "pca" or others is None:
        return pca_basis(own[name], rank, earlier, rng)
    return contrastive_basis(own[name], others[name], rank, earlier, rng)


def interference_of(stack: Stack, others: Moments, prior: Moments, weighting: str) -> Interference:
    """C of `others` and Gamma of `prior` for the layers of one stack, in units of the layers' own part in the output."""
    inputs = [others[name].factor() for name in stack.names]
    if weighting == "sensitivity":
        curvature = prior.output_curvature
        outputs = [tuple(part.to(stack.A) for part in curvature[name].factor()) for name in stack.names]
        for name in stack.names:
            curvature[name].forget()  # the prior stays for the whole training; this is needed once
        mean = math.fsum(prior.sensitivity(name) for name in curvature) / len(curvature)  # in whatever order a file has them
        weight = torch.full((len(stack.names),), 1 / max(mean, 1e-30))
    else:
        outputs = [(torch.zeros(stack.A.shape[1], 0), torch.ones(stack.A.shape[1])) for _ in stack.names]
        weight = 1 / torch.tensor([prior.output_energy[name] for name in stack.names]).clamp(min=1e-12)
    return Interference(*_stacked(inputs, stack.A), *_stacked(outputs, stack.A), weight.to(stack.A))


def _stacked(factors: Sequence[tuple[Tensor, ...]], like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.stack([v for v, _ in factors]).to(like), torch.stack([d for _, d in factors]).to(like)


def constraint_of(stack: Stack, directions: dict[str, Tensor]) -> Constraint:
    """Takes what it puts on the device out of `directions`: a layer's F is nowhere twice."""
    widest = max(directions[name].shape[1] for name in stack.names)
    F = torch.zeros(len(stack.names), stack.B.shape[1], widest, device=stack.B.device)
    for i, name in enumerate(stack.names):
        own = directions.pop(name)
        F[i, :, : own.shape[1]] = own
    return Constraint(F)


def earlier_bases(stack: Stack, earlier: Sequence[Concept]) -> Tensor:
    """All earlier concepts' bases side by side, (layers, n, p), as the overlap penalty takes them."""
    return _stack_padded([concat_bases(earlier, name) for name in stack.names]).to(stack.B)


def _stack_padded(matrices: Sequence[Tensor]) -> Tensor:
    widest = max(matrix.shape[1] for matrix in matrices)
    return torch.stack([nn.functional.pad(matrix, (0, widest - matrix.shape[1])) for matrix in matrices])


def orthonormalised(pair: LoRAPair) -> LoRAPair:
    """The same A B' with an orthonormal B: concept files are all alike, also those of plain LoRA."""
    basis, triangle = torch.linalg.qr(pair.basis.double())
    return LoRAPair((pair.up.double() @ triangle.mT).float(), basis.float())
