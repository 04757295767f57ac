"""Maps from any matrix to one with orthonormal columns, and matrices that they take to a given one.

The numbers of ``torch.nn.utils.parametrizations.orthogonal``. A wide matrix is mapped as its
transpose is, to orthonormal rows. Lezcano-Casado and Martínez-Rubio (2019, arXiv 1901.08428) for
the exponential and Cayley's map, Lezcano-Casado (2019, arXiv 1909.09501) for a base.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAPS = ("householder", "matrix_exp", "cayley", "newton_schulz")
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def matrices(weight: Tensor, dim: int | None) -> Tensor:
    """The weight as a matrix of (size of ``dim``, all else); None leaves its last two dimensions.

    As any number of such matrices, then.
    """
    return weight if dim is None else weight.movedim(dim, 0).flatten(1)


def from_matrices(values: Tensor, weight: Tensor, dim: int | None) -> Tensor:
    """Undo :func:`matrices`, with the shape and the memory format of ``weight``."""
    if dim is None:
        return values
    shape = list(weight.shape)
    size = shape.pop(dim)
    result = values.reshape(size, *shape).movedim(0, dim)
    own = _FORMATS.get(weight.ndim)
    if own is None or weight.is_contiguous() or not weight.is_contiguous(memory_format=own):
        return result
    return result.contiguous(memory_format=own)


def default_map(shape: Sequence[int], is_complex: bool) -> str:
    """What torch takes for matrices of such a shape."""
    return "matrix_exp" if is_complex or shape[-2] == shape[-1] else "householder"


def orthonormal(x: Tensor, kind: str, base: Tensor | None) -> Tensor:
    """The matrices that a map, of ``MAPS`` but the last, makes of matrices of any values.

    Args:
        x: matrices of shape (..., M, N).
        kind: of householder, matrix_exp and cayley.
        base: orthogonal matrices of shape (..., n, n), n the larger of M and N, to be multiplied.
    """
    is_wide = x.shape[-2] < x.shape[-1]
    tall = x.mT if is_wide else x
    q = _reflected(tall) if kind == "householder" else _rotated(tall, kind)
    if base is not None:
        q = base @ q
    return q.mT if is_wide else q


def _reflected(x: Tensor) -> Tensor:
    """The product of the reflections by the columns of a tall ``x`` below its diagonal, which has
    the signs.
    """
    vectors = x.tril(-1)
    tau = 2.0 / (1.0 + (vectors * vectors).sum(-2))
    signs = x.diagonal(dim1=-2, dim2=-1).int()
    q: Tensor = torch.linalg.householder_product(vectors, tau)
    return q * signs.unsqueeze(-2)


def _rotated(x: Tensor, kind: str) -> Tensor:
    """The first columns of the rotation that the lower triangle of a tall ``x`` generates."""
    n, k = x.shape[-2:]
    lower = x.tril()
    if n != k:
        lower = torch.cat([lower, lower.new_zeros(*x.shape[:-1], n - k)], -1)
    skew = lower - lower.mH
    if kind == "matrix_exp":
        q = torch.matrix_exp(skew)
    else:
        identity = torch.eye(n, dtype=x.dtype, device=x.device)
        q = torch.linalg.solve(identity - 0.5 * skew, identity + 0.5 * skew)
    return q if n == k else q[..., :k]


def is_orthonormal(x: Tensor) -> bool:
    """Whether the columns of tall matrices are, to rounding; reads them."""
    n, k = x.shape[-2:]
    identity = torch.eye(k, dtype=x.dtype, device=x.device)
    return torch.allclose(x.mH @ x, identity, atol=10 * n * torch.finfo(x.dtype).eps)


def base_of(x: Tensor) -> Tensor:
    """Square matrices, orthogonal, whose first columns or rows are ``x`` made orthonormal.

    The others are random.
    """
    tall = x.mT if x.shape[-2] < x.shape[-1] else x
    n, k = tall.shape[-2:]
    if x.is_meta:
        return tall.new_empty(*tall.shape[:-1], n)
    if n == k:
        return tall.clone() if is_orthonormal(tall) else _q_of(tall)
    others = torch.randn(*tall.shape[:-1], n - k, dtype=x.dtype, device=x.device)
    return _q_of(torch.cat([tall, others], -1))


def reflectors_of(x: Tensor) -> Tensor:
    """What householder takes to ``x`` made orthonormal, without a base."""
    is_wide = x.shape[-2] < x.shape[-1]
    vectors, tau = torch.geqrf(x.mT if is_wide else x)
    diagonal = vectors.diagonal(dim1=-2, dim2=-1)
    # The signs of R's diagonal; a reflection that LAPACK has left out turns none.
    diagonal.copy_(torch.where(tau == 0, -diagonal.sign(), diagonal.sign()))
    return vectors.mT if is_wide else vectors


def negative_identity_like(x: Tensor) -> Tensor:
    """What each of the maps takes to the identity, and so to the base."""
    result = torch.zeros_like(x)
    result.diagonal(dim1=-2, dim2=-1).fill_(-1)
    return result


def _q_of(x: Tensor) -> Tensor:
    """Q of x = Q R, R with a positive diagonal."""
    factors, tau = torch.geqrf(x)
    signs = factors.diagonal(dim1=-2, dim2=-1).sgn().unsqueeze(-2)
    q: Tensor = torch.linalg.householder_product(factors, tau)
    return q * signs
