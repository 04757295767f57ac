"""Weight normalization in torch's own operations: of rows, and of a weight with its graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .matrix_view import MatrixView
from .row_scaling import RowScaled, RowScaling, RowScalingGradient


def scale_rows(calls: Sequence[RowScaling]) -> list[RowScaled]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [_scale(*call) for call in calls]


def scale_rows_backward(calls: Sequence[RowScalingGradient]) -> list[tuple[Tensor, Tensor]]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [_scale_backward(*call) for call in calls]


def _scale(weight: Tensor, view: MatrixView, g: Tensor, dtype: torch.dtype) -> RowScaled:
    rows = view.operand(_wide(weight))
    # In float64, no square leaves the range of a float32.
    double = rows.dtype if weight.device.type == "mps" else torch.float64
    norms = torch.linalg.vector_norm(rows, dim=_columns(rows), dtype=double).to(rows.dtype)
    scaled = rows * (g.reshape(view.M).to(rows.dtype) / divisor(norms)).view(view.M, 1)
    return RowScaled(scaled.to(dtype).as_strided(weight.shape, weight.stride()), norms)


def _scale_backward(
    grad: Tensor, weight: Tensor, view: MatrixView, g: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    v, grads = view.operand(_wide(weight)), view.operand(_wide(grad))
    lengths = divisor(norms).view(view.M, 1)
    inner = (grads * v).sum(_columns(v)).view(view.M, 1) / lengths
    grad_v = grads - v * (inner / lengths)
    grad_v *= g.reshape(view.M, 1).to(v.dtype) / lengths
    grad_v = grad_v.to(weight.dtype).as_strided(weight.shape, weight.stride())
    return grad_v, inner.reshape(g.shape).to(g.dtype)


def weight_norm(weight: Tensor, g: Tensor, dim: int | None, dtype: torch.dtype) -> Tensor:
    """``g v / |v|`` in ``dtype``, differentiable in both, for whatever transforms or traces it.

    Norms are of the rows along ``dim``, or of all of a weight.
    """
    wide = _wide(weight)
    return (wide * (_wide(g) / divisor(norm_except(wide, dim)))).to(dtype)


def gradient(grad: Tensor, weight: Tensor, g: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """The gradients of v and g, differentiable in all that they are of."""
    v, grads, scale = _wide(weight), _wide(grad), _wide(g)
    lengths = divisor(norm_except(v, dim))
    inner = _summed(grads * v, dim) / lengths
    grad_v = (grads - v * (inner / lengths)) * (scale / lengths)
    return grad_v.to(weight.dtype), inner.reshape(g.shape).to(g.dtype)


def norm_except(weight: Tensor, dim: int | None) -> Tensor:
    """The norms of the rows along ``dim``, sizes of 1 elsewhere; of all, shape (), for None."""
    if dim is None:
        whole: Tensor = torch.linalg.vector_norm(weight)
        return whole
    if weight.ndim == 1:  # no dimension would be all of them
        return weight.abs()
    rows: Tensor = torch.linalg.vector_norm(weight, dim=_others(weight, dim), keepdim=True)
    return rows


def divisor(norms: Tensor) -> Tensor:
    """The norms, and 1 for a row of zeros, so that it stays one and has a gradient."""
    return torch.where(norms == 0, 1, norms)


def _summed(products: Tensor, dim: int | None) -> Tensor:
    if dim is None:
        return products.sum()
    others = _others(products, dim)
    return products.sum(others, keepdim=True) if others else products


def _others(weight: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(weight.ndim) if axis != dim)


def _columns(operand: Tensor) -> tuple[int, ...]:
    return (1,) if operand.ndim == 2 else (0, 2)


def _wide(tensor: Tensor) -> Tensor:
    """Half precision is computed in float32."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
