"""The restricted Stiefel manifold M = {B : B'B = I, F'B = 0}, one short function per geometric act.

All functions are batched: B and G are (layers, n, r), F is (layers, n, p) with orthonormal columns. A layer with fewer earlier
directions than the others has zero columns in F, which constrain nothing. Euclidean metric (Edelman, Arias and Smith 1998).
"""

from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular


def sym(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def complement(matrix: Tensor, earlier: Tensor) -> Tensor:
    """P X = (I - FF') X: the part of X that no earlier concept uses."""
    return matrix - earlier @ (earlier.mT @ matrix)


def tangent(gradient: Tensor, basis: Tensor, earlier: Tensor) -> Tensor:
    """Orthogonal projection on the tangent space at B: P G - B sym(B'G)."""
    gradient = complement(gradient, earlier)
    return gradient - basis @ sym(basis.mT @ gradient)


def retract(point: Tensor, earlier: Tensor) -> Tensor:
    """Back onto M from a point near it: the Q of P(B + D), by Cholesky, whose R has a positive diagonal (so Q is unique).

    Stable because the argument is nearly orthonormal. Projecting again keeps F'B at rounding error over any number of steps.
    """
    point = complement(point, earlier)
    factor, _ = cholesky_ex(point.mT @ point)
    return solve_triangular(factor.mT, point, upper=True, left=False)
