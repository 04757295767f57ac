"""Maps from any tall matrix to one with orthonormal columns, and what they take to a given one.

The numbers of ``torch.nn.utils.parametrizations.orthogonal``. A wide matrix is mapped as its
transpose is, to orthonormal rows. Lezcano-Casado and Martínez-Rubio (2019, arXiv 1901.08428) for
the exponential and Cayley's map, Lezcano-Casado (2019, arXiv 1909.09501) for a base.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..torch_internals import functorch

MapName = Literal["householder", "matrix_exp", "cayley", "newton_schulz"]
MAPS = get_args(MapName)
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Reading(NamedTuple):
    """How a weight is read as matrices of shape (rows, columns), or their transposes: tall ones.

    Plain numbers, for those of a tensor are tensors to torch.jit.trace.
    """

    dim: int | None  # of the rows, all else being columns; None: the last two, of a batch
    rows: int
    columns: int

    @property
    def is_wide(self) -> bool:
        """Whether it is the transposes that are tall."""
        return self.rows < self.columns

    def tall(self, weight: Tensor) -> Tensor:
        """The weight as tall matrices of shape (..., n, k)."""
        x = weight
        if self.dim is not None:
            x = weight.movedim(self.dim, 0).reshape(self.rows, self.columns)
        return x.mT if self.is_wide else x

    def undo(self, tall: Tensor, weight: Tensor) -> Tensor:
        """Tall matrices, however batched, in the shape of ``weight``; by ``dim`` in its format."""
        x = tall.mT if self.is_wide else tall
        if self.dim is None:
            return x.reshape(weight.shape)
        shape = list(weight.shape)
        size = shape.pop(self.dim)
        result = x.reshape(size, *shape).movedim(0, self.dim)
        return result.contiguous(memory_format=memory_format(weight))


def memory_format(weight: Tensor) -> torch.memory_format:
    """That of the weight, a contiguous one where it has no other."""
    own = _FORMATS.get(weight.ndim)
    if own is None or functorch.active() or weight.is_contiguous():  # vmap knows of no other
        return torch.contiguous_format
    return own if weight.is_contiguous(memory_format=own) else torch.contiguous_format


def default_map(reading: Reading, is_complex: bool) -> MapName:
    """What torch takes for matrices of such a shape."""
    is_square = reading.rows == reading.columns
    return "matrix_exp" if is_complex or is_square else "householder"


def orthonormal(x: Tensor, kind: str, base: Tensor | None, excess: int) -> Tensor:
    """The matrices that a map, of ``MAPS`` but the last, makes of tall matrices of any values.

    Args:
        x: matrices of shape (..., n, k).
        kind: of householder, matrix_exp and cayley.
        base: orthogonal matrices of shape (..., n, n), to be multiplied by what the map gives.
        excess: n - k.
    """
    q = _reflected(x) if kind == "householder" else _rotated(x, kind, excess)
    return q if base is None else base @ q


def _reflected(x: Tensor) -> Tensor:
    """The product of the reflections by the columns of ``x`` below its diagonal, by its signs.

    torch takes the whole part of the diagonal, which weight decay makes 0.
    """
    vectors = x.tril(-1)
    tau = 2.0 / (1.0 + (vectors * vectors).sum(-2))
    signs = torch.where(x.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(x.dtype)
    q: Tensor = torch.linalg.householder_product(vectors, tau)
    return q * signs.unsqueeze(-2)


def _rotated(x: Tensor, kind: str, excess: int) -> Tensor:
    """The first columns of the rotation that the lower triangle of ``x`` generates."""
    lower = x.tril()
    if excess:
        lower = torch.cat([lower, lower.new_zeros(*x.shape[:-1], excess)], -1)
    skew = lower - lower.mH
    if kind == "matrix_exp":
        q = torch.matrix_exp(skew)
    else:
        identity = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
        q = torch.linalg.solve(identity - 0.5 * skew, identity + 0.5 * skew)
    return q[..., :-excess] if excess else q


def is_orthonormal(x: Tensor) -> bool:
    """Whether the columns of tall matrices are, to rounding; reads them."""
    n, k = x.shape[-2:]
    identity = torch.eye(k, dtype=x.dtype, device=x.device)
    return torch.allclose(x.mH @ x, identity, atol=10 * n * torch.finfo(x.dtype).eps)


def base_of(x: Tensor) -> Tensor:
    """Orthogonal square matrices whose first columns are those of tall ``x`` made orthonormal.

    The others are random.
    """
    n, k = x.shape[-2:]
    if x.is_meta:
        return x.new_empty(*x.shape[:-1], n)
    if n == k:
        return x.clone() if is_orthonormal(x) else _q_of(x)
    others = torch.randn(*x.shape[:-1], n - k, dtype=x.dtype, device=x.device)
    return _q_of(torch.cat([x, others], -1))


def reflectors_of(x: Tensor) -> Tensor:
    """What householder takes to tall ``x`` made orthonormal, without a base."""
    vectors, tau = torch.geqrf(x)
    diagonal = vectors.diagonal(dim1=-2, dim2=-1)
    # The signs of R's diagonal; a reflection that LAPACK has left out turns none.
    diagonal.copy_(torch.where(tau == 0, -diagonal.sign(), diagonal.sign()))
    return vectors


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
