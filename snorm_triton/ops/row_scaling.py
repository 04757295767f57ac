"""What weight normalization asks of a backend, and what comes of it: plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .matrix_view import MatrixView


class RowScaling(NamedTuple):
    """Rows of a dense weight, of which no gradient is taken, to be scaled to the norms ``g``.

    ``g`` has a row's norm each, contiguous in whatever shape, in the weight's dtype or float32.
    ``dtype`` is that of the result. How ``view`` orders columns does not matter.
    """

    weight: Tensor
    view: MatrixView
    g: Tensor
    dtype: torch.dtype


class RowScaled(NamedTuple):
    """``g v / |v|`` by rows, laid out as v is, and the norms ``|v|``, shape (M,).

    A row whose norm is zero is divided by 1. The norms are float64 of a float64 weight, else
    float32.
    """

    weight: Tensor
    norms: Tensor


class RowScalingGradient(NamedTuple):
    """The gradient of the scaled rows, laid out as the dense weight is, and what they came from."""

    grad: Tensor
    weight: Tensor
    view: MatrixView
    g: Tensor
    norms: Tensor


class RowRounds(Protocol):
    """What scales the rows of the same weights again and again."""

    def __call__(self) -> tuple[list[Tensor], Tensor]:
        """The scaled weights, each fresh, and the norms of the rows of all."""

    def gradients_of(self, members: Sequence[int]) -> RowGradients:
        """What computes the gradients of these; it keeps no other weights."""


class RowGradients(Protocol):
    """The gradients of some weights of a round, from the norms of all."""

    calls: Sequence[RowScaling]

    def norms_of(self, i: int, norms: Tensor) -> Tensor:
        """Those of one weight, shape (M,)."""

    def __call__(
        self, norms: Tensor, used: Sequence[int], grads: Sequence[Tensor]
    ) -> Sequence[tuple[Tensor, Tensor]]:
        """As ``scale_rows_backward_together``, of those used, grads laid out as they."""
