"""How a weight is read as a matrix where it lies, without reshaping, permuting or copying it."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class MatrixView(NamedTuple):
    """A matrix ``W`` of shape (M, N) in a dense weight, in memory order (P, M, Q) with N = P * Q.

    ``W[m, n]`` lies at element ``(p * M + m) * Q + q`` of the weight's memory, where ``p, q`` are
    the quotient and remainder of *memory column* ``n`` by ``Q``. The columns that torch calls the
    flattened weight are the *logical* ones; memory holds them in order (A, K, C) where the logical
    order is (A, C, K), so ``K == 1`` means that the two orders agree. Only vectors are ever
    permuted.

    Examples: Linear and Conv have P = 1; ConvTranspose has P = in, Q = prod(kernel); a
    channels_last Conv has P = 1, K = prod(kernel), C = in.
    """

    P: int
    M: int
    Q: int
    K: int = 1
    C: int = 1

    @property
    def N(self) -> int:
        """The number of columns."""
        return self.P * self.Q

    def columns_to_memory(self, v: Tensor) -> Tensor:
        """``v`` of shape (N,) from logical to memory column order: itself where they agree."""
        if self.K == 1:
            return v
        return v.view(-1, self.C, self.K).transpose(1, 2).reshape(-1)

    def columns_to_logical(self, v: Tensor) -> Tensor:
        """``v`` of shape (N,) from memory to logical column order: itself where they agree."""
        if self.K == 1:
            return v
        return v.view(-1, self.K, self.C).transpose(1, 2).reshape(-1)

    def operand(self, weight: Tensor) -> Tensor:
        """The dense ``weight`` as (M, N) in memory column order where strides allow, or (P, M, Q).

        A view, for the matrix products of a library.
        """
        if self.P == 1:
            if weight.shape == (self.M, self.Q) and weight.is_contiguous():
                return weight
            return weight.as_strided((self.M, self.Q), (self.Q, 1))
        if self.Q == 1:
            return weight.as_strided((self.M, self.P), (1, self.M))
        if weight.shape == (self.P, self.M, self.Q) and weight.is_contiguous():
            return weight
        return weight.as_strided((self.P, self.M, self.Q), (self.M * self.Q, self.Q, 1))


def matrix_view(weight: Tensor, dim: int) -> MatrixView | None:
    """The ``MatrixView`` of ``weight`` with its outputs along ``dim``, or None where it has none.

    A weight has none when it is not dense (an expanded or sliced tensor), or when its columns lie
    in an order that one transposition does not describe. Contiguous and channels_last weights have
    one, for every ``dim`` and every number of groups.
    """
    return view_of(tuple(weight.shape), weight.stride(), dim)


def in_matrix_layout(weight: Tensor, dim: int) -> tuple[Tensor, MatrixView]:
    """``weight`` and its view; a weight that has no view is made contiguous first."""
    weight = weight.resolve_conj().resolve_neg()
    view = matrix_view(weight, dim)
    if view is None:
        weight = weight.contiguous()
        view = matrix_view(weight, dim)
        assert view is not None
    return weight, view


def flat(tensor: Tensor) -> Tensor:
    """The dense ``tensor`` as a vector in memory order, a view."""
    return tensor.ravel() if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


def like_weight(tensor: Tensor, weight: Tensor, view: MatrixView, dim: int | None) -> Tensor:
    """``tensor`` laid out in memory as the dense ``weight`` is: itself where it already is.

    ``dim`` is that of the view's rows; None of a view of all, which says nothing of the order.
    """
    if tensor.layout != torch.strided:  # of a sparse Embedding
        tensor = tensor.to_dense()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if tensor.stride() == weight.stride():
        return tensor
    if dim is not None and matrix_view(tensor, dim) == view:
        return tensor
    return torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)


@lru_cache(maxsize=4096)
def view_of(shape: tuple[int, ...], stride: tuple[int, ...], dim: int) -> MatrixView | None:
    """As :func:`matrix_view`, of a weight of such a shape and strides."""
    # Axes from the slowest to the fastest in memory; an axis of size 1 lies nowhere.
    axes = [axis for axis in range(len(shape)) if shape[axis] != 1]
    axes.sort(key=lambda axis: -stride[axis])
    step = 1
    for axis in reversed(axes):
        if stride[axis] != step:
            return None
        step *= shape[axis]
    at = axes.index(dim) if dim in axes else 0
    before, after = axes[:at], axes[at + (dim in axes) :]
    columns = _transposition(before + after, shape)
    if columns is None:
        return None
    return MatrixView(
        prod(shape[axis] for axis in before),
        shape[dim],
        prod(shape[axis] for axis in after),
        *columns,
    )


def _transposition(axes: list[int], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(K, C) if sorting ``axes`` swaps two neighbouring runs of sizes K and C at their end."""
    logical = sorted(axes)
    start = next(
        (i for i, pair in enumerate(zip(axes, logical, strict=True)) if pair[0] != pair[1]), None
    )
    if start is None:
        return 1, 1
    swapped, logical = axes[start:], logical[start:]
    for split in range(1, len(swapped)):
        if swapped[split:] + swapped[:split] == logical:
            return (
                prod(shape[axis] for axis in swapped[:split]),
                prod(shape[axis] for axis in swapped[split:]),
            )
    return None
