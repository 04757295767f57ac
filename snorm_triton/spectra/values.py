"""The singular values of a weight, and what a table says of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .weights import Weight


class Spectrum(NamedTuple):
    """A weight's singular values in falling order, each of shape (min(M, N),).

    ``normalized`` is None where it is not known what is computed of the weight. Where the weight is
    not finite, nor are they.
    """

    name: str
    shape: tuple[int, ...]
    norm: str
    layout: str
    raw: Tensor
    normalized: Tensor | None

    @property
    def stable_rank(self) -> float:
        """The squared Frobenius norm over the square of the largest: 1 to min(M, N); 0 of zeros."""
        return float((self.raw / self.raw[0]).square().sum()) if self.raw[0] != 0 else 0.0


def spectrum(weight: Weight) -> Spectrum:
    """By singular value decomposition in float64."""
    raw, used = _singular_values(weight.raw), weight.normalized
    if used is not None:
        # A spectral norm divides all of them by one number.
        largest = weight.raw.abs().max()
        is_scaled = weight.norm in ("spectral", "none") and largest > 0
        used = raw * (used.abs().max() / largest) if is_scaled else _singular_values(used)
    return Spectrum(*weight[:4], raw, used)


def _singular_values(matrix: Tensor) -> Tensor:
    if not matrix.isfinite().all():
        return torch.full((min(matrix.shape),), torch.nan, dtype=torch.float64)
    values: Tensor = torch.linalg.svdvals(matrix)
    return values
