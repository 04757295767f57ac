"""The polar factor of matrices by products of matrices alone, and its gradient.

Of a tall X = Q H of full rank, H Hermitian and positive, that is Q, the nearest matrix with
orthonormal columns; that of the transpose is the transpose of it. Odd polynomials of X change its
singular values alone, and these bring all of them to 1 (Björck and Bowie 1971). Each is the best of
degree 5 for the interval that those before it leave (Amsel et al. 2025, arXiv 2505.16932), and for
1 % more, since what lies above it grows: six take [4e-4, 1] to within 5 % of 1, the seventh to
1.3e-4, the eighth to 1e-11.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Polynomial = tuple[float, float, float]
"""a, b and c of a s + b s^3 + c s^5."""

FIRST = (7.4987, -20.9390, 15.0518)  # from [0, 1]
LEVEL = 0.83  # where that is level: rounding of gradients is not amplified there
GROWTH = (4.1185, -3.4692, 0.7523)  # of small singular values, as often as they need it
LAST = (
    (4.0471, -3.3876, 0.7335),  # from [0.051, 1.82]
    (2.9583, -2.1739, 0.4595),  # from [0.21, 1.80]
    (2.0683, -1.4343, 0.3829),  # from [0.59, 1.41]
    (1.8682, -1.2339, 0.3657),  # from [0.95, 1.05]
    (1.8750, -1.2500, 0.3750),  # from whatever is near 1, to third order
)
CUBIC = (1.5, -0.5, 0.0)  # likewise to second order, in one product less
N_ITERATIONS = 8  # for condition numbers to 1000, of matrices of up to 4000 columns
# On a CPU, of the eigenvalues of the Gram matrix: how far from their mean the last polynomial
# converges; their spread from which on some may be small; how many polynomials then suffice, if
# before the last of them the matrices are as near to orthonormal as this.
_NEAR, _EVEN, _FEW, _CONVERGED = 0.8, 0.5, 4, 0.02


class Step(NamedTuple):
    """One polynomial of X, as its gradient needs it: ``X p(A)`` with A the Gram matrix of X."""

    x: Tensor
    gram: Tensor
    factor: Tensor  # p(A)
    polynomial: Polynomial


class Recorded(NamedTuple):
    """Polar factors, and how they came about."""

    q: Tensor
    steps: list[Step]
    scale: Tensor  # what the matrices were multiplied by, (B, 1, 1)


class _Start(NamedTuple):
    """Scaled matrices, with what is known of the squares of their singular values."""

    x: Tensor
    gram: Tensor
    square: Tensor  # of the Gram matrix
    scale: Tensor
    radius: Tensor  # a bound on their distance from their mean, over that
    spread: Tensor  # their variance over the square of their mean


def polynomials(n_iterations: int) -> list[Polynomial]:
    """The last ``n_iterations`` of the sequence: each more reaches 4.12 times as far down."""
    if n_iterations <= len(LAST):
        return list(LAST[-n_iterations:])
    return [FIRST, *[GROWTH] * (n_iterations - len(LAST) - 1), *LAST]


def recorded(x: Tensor, n_iterations: int, *, twice: bool = False) -> Recorded:
    """Q of each matrix, differentiable: by torch's own operations, as many for all matrices.

    Args:
        x: matrices of shape (B, n, k) with n >= k, of full rank, float32 or more precise.
        n_iterations: how many polynomials.
        twice: whether it may be differentiated twice: by one polynomial more. What the others make
            of a singular value is near 1 and yet steep where those before them were.
    """
    further = LAST[-1:] if twice else ()
    return _through(_scaled(x), [*polynomials(n_iterations), *further])


@torch.no_grad()
def record(x: Tensor, n_iterations: int) -> Recorded:
    """As :func:`recorded`, without a graph.

    On a CPU, where there is nothing to wait for, by no more polynomials than the matrices need.
    """
    start = _scaled(x)
    if x.device.type == "cpu":
        radius = float(start.radius.max())
        if radius < _NEAR:
            return _through(_centered(start), _converging(radius, torch.finfo(x.dtype).eps))
        if float(start.spread.max()) < _EVEN:
            recorded = _through(start, polynomials(min(n_iterations, _FEW)))
            if float(_distance(recorded.steps[-1].gram).max()) < _CONVERGED:
                return recorded
    return _through(start, polynomials(n_iterations))


def gradient(grad: Tensor, recorded: Recorded) -> Tensor:
    """That of the matrices for ``grad``, that of their Q: four products for each step.

    Many steps amplify the rounding of what is zero, the Hermitian part of Q^H times the gradient.
    """
    for x, gram, factor, (_, b, c) in reversed(recorded.steps):
        of_factor = x.mH @ grad
        of_factor = of_factor + of_factor.mH  # twice its Hermitian part, which is all that counts
        of_gram = b * of_factor
        if c:
            product = of_factor @ gram
            of_gram.add_(product + product.mH, alpha=c)
        grad = torch.baddbmm(grad @ factor, x, of_gram)
    if len(recorded.steps) > _FEW:
        part = recorded.q.mH @ grad
        grad = torch.baddbmm(grad, recorded.q, part + part.mH, alpha=-0.5)
    return grad * recorded.scale


@torch.no_grad()
def defect(q: Tensor) -> Tensor:
    """``|Q^H Q - I|`` of each matrix, Frobenius norms of shape (B,)."""
    return _distance(q.mH @ q)


def _through(start: _Start, sequence: list[Polynomial]) -> Recorded:
    x, gram, steps = start.x, start.gram, []
    identity = _identity_like(gram)
    for i, polynomial in enumerate(sequence):
        a, b, c = polynomial
        if i == 0:
            factor = b * gram + c * start.square
        else:
            gram = x.mH @ x
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        factor.add_(identity, alpha=a)
        steps.append(Step(x, gram, factor, polynomial))
        x = x @ factor
    return Recorded(x, steps, start.scale)


def _scaled(x: Tensor) -> _Start:
    """With no singular value above LEVEL.

    The squares of the singular values are the eigenvalues of the Gram matrix. The largest is at
    most their mean and the fourth root of the sum of the fourth powers of what they differ by.
    """
    largest = x.detach().abs().amax((-2, -1), keepdim=True)  # lest a square overflow
    largest = torch.where(largest == 0, 1.0, largest)
    x = x / largest
    gram = x.mH @ x
    square = gram @ gram
    with torch.no_grad():
        mean = _norm(x) ** 2 / gram.shape[-1]
        mean = torch.where(mean == 0, 1.0, mean)
        scaled = mean * _identity_like(gram)
        second = _norm(gram - scaled)
        fourth = _norm(square - 2 * mean * gram + mean * scaled)
        radius = torch.minimum(second, fourth.sqrt()) / mean
        bound = mean * (1 + radius) / LEVEL**2
        spread = (second / mean) ** 2 / gram.shape[-1]
        scale = bound.rsqrt()
    return _Start(x * scale, gram / bound, square / bound**2, scale / largest, radius, spread)


def _centered(start: _Start) -> _Start:
    """With a mean of 1 in place of a largest of 1."""
    x, gram, square, scale, radius, spread = start
    by = (1 + radius) / LEVEL**2
    return _Start(x * by.sqrt(), gram * by, square * by**2, scale * by.sqrt(), radius, spread)


def _converging(radius: float, eps: float) -> list[Polynomial]:
    """Those that converge from eigenvalues of the Gram matrix in [1 - radius, 1 + radius]."""
    sequence = []
    while radius**3 > 2 * eps:
        sequence.append(LAST[-1])
        radius = radius**3
    return [*sequence, CUBIC if 0.75 * radius**2 < 2 * eps else LAST[-1]]


def _distance(gram: Tensor) -> Tensor:
    """From the identity, (B,)."""
    return _norm(gram - _identity_like(gram)).flatten()


def _norm(x: Tensor) -> Tensor:
    """Of each matrix, (B, 1, 1)."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return norm


def _identity_like(gram: Tensor) -> Tensor:
    return torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
