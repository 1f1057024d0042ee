"""A change of weights made elsewhere as the nearest pair that a library has room for, in closed form."""

from __future__ import annotations

import torch

from ..lora.types import LoRAPair
from .basis import RIDGE, orthonormal
from .manifold import complement
from .moments import Moment


def nearest_pair(
    change: LoRAPair, rank: int, earlier: torch.Tensor, own: Moment, others: Moment, weight: float, generator: torch.Generator
) -> LoRAPair:
    """The minimum over A and B in M of tr((D - AB') C (D - AB')') + weight tr(AB' R BA'), D = U V' the change of a layer.

    C are the layer's inputs on the concept, R those on everything else (plus a little of its mean, as no direction is never
    used). Without a rank to keep to the minimum is D C K^-1 with K = C + weight R inside the complement; of rank r it is that
    one's best approximation in the metric of K, a reduced-rank regression (Izenman 1975). K is diagonal but for the factors of
    C and R, so it is solved by Woodbury's identity; the rest are matrices as wide as the ranks.

    Args:
        change: U (m, R) and V (n, R), of any rank.
        rank: r of the result.
        earlier: F (n, p), orthonormal, float64.

    Returns:
        A (m, r) and B (n, r) in fp32, B orthonormal with F'B = 0.
    """
    up, down = change.up.to(earlier), change.basis.to(earlier)
    factor, tail = (part.to(earlier) for part in own.factor())
    apart, rest = (part.to(earlier) * scale for part, scale in zip(others.factor(), (weight**0.5, weight), strict=True))
    mean = (own.diagonal.double().mean() + weight * others.diagonal.double().mean()).to(earlier)
    diagonal = (tail + rest + RIDGE * weight * mean.clamp(min=1e-30))[:, None]
    columns = torch.cat([factor, apart], 1)

    seen = factor @ (factor.mT @ down) + tail[:, None] * down  # C V
    walls = torch.cat([columns, earlier * (1e8 * mean).sqrt()], 1)  # an earlier direction costs too much to be used
    weighted = walls / diagonal
    core = torch.eye(walls.shape[1]).to(earlier) + walls.mT @ weighted
    wanted = complement(seen / diagonal - weighted @ torch.linalg.solve(core, weighted.mT @ seen), earlier)  # K^-1 C V

    gram = wanted.mT @ (columns @ (columns.mT @ wanted) + diagonal * wanted)
    rotation, triangle = torch.linalg.qr(up)
    _, vectors = torch.linalg.eigh(triangle @ gram @ triangle.mT)
    vectors = vectors.flip(1)[:, :rank]
    rows, missing = wanted @ (triangle.mT @ vectors), max(0, rank - vectors.shape[1])
    coefficients = torch.nn.functional.pad(rotation @ vectors, (0, missing))
    rows = torch.nn.functional.pad(rows, (0, missing))
    basis = orthonormal(rows, earlier, generator)
    return LoRAPair((coefficients @ (rows.mT @ basis)).float(), basis.float())
