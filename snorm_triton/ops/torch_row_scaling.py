"""Weight normalization in torch's own operations: of rows, and of a weight with its graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .matrix_view import MatrixView
from .row_scaling import RowScaled, RowScaling, RowScalingGradient


def scale_rows(weight: Tensor, view: MatrixView, g: Tensor, dtype: torch.dtype) -> RowScaled:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    rows = view.operand(wide(weight))
    # In float64, no square leaves the range of a float32.
    double = rows.dtype if weight.device.type == "mps" else torch.float64
    norms = torch.linalg.vector_norm(rows, dim=columns_of(rows), dtype=double).to(rows.dtype)
    return RowScaled(scaled(rows, norms, g, dtype, weight), norms)


def scaled(rows: Tensor, norms: Tensor, g: Tensor, dtype: torch.dtype, weight: Tensor) -> Tensor:
    """``rows`` of those norms at the norms ``g``, laid out as the ``weight`` is."""
    M = norms.shape[0]
    result = rows * (g.reshape(M).to(rows.dtype) / divisor(norms)).view(M, 1)
    return result.to(dtype).as_strided(weight.shape, weight.stride())


def scale_rows_backward(
    grad: Tensor, weight: Tensor, view: MatrixView, g: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    v, grads = view.operand(wide(weight)), view.operand(wide(grad))
    lengths = divisor(norms).view(view.M, 1)
    inner = (grads * v).sum(columns_of(v)).view(view.M, 1) / lengths
    grad_v = torch.addcmul(grads, v, inner / lengths, value=-1)
    grad_v *= g.reshape(view.M, 1).to(v.dtype) / lengths
    grad_v = grad_v.to(weight.dtype).as_strided(weight.shape, weight.stride())
    return grad_v, inner.reshape(g.shape).to(g.dtype)


def scale_rows_together(calls: Sequence[RowScaling]) -> list[RowScaled]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [scale_rows(*call) for call in calls]


def scale_rows_backward_together(
    calls: Sequence[RowScalingGradient],
) -> list[tuple[Tensor, Tensor]]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [scale_rows_backward(*call) for call in calls]


def row_rounds(calls: Sequence[RowScaling]) -> None:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return None


def weight_norm(weight: Tensor, g: Tensor, dim: int | None, dtype: torch.dtype) -> Tensor:
    """``g v / |v|`` in ``dtype``, differentiable in both, for whatever transforms or traces it.

    Norms are of the rows along ``dim``, or of all of a weight.
    """
    v = wide(weight)
    return (v * (wide(g) / _lengths(v, dim))).to(dtype)


def gradient(grad: Tensor, weight: Tensor, g: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """The gradients of v and g, differentiable in all that they are of."""
    v, grads, scale = wide(weight), wide(grad), wide(g)
    lengths = _lengths(v, dim)
    inner = _summed(grads * v, dim) / lengths
    grad_v = (grads - v * (inner / lengths)) * (scale / lengths)
    return grad_v.to(weight.dtype), inner.reshape(g.shape).to(g.dtype)


def norm_except(weight: Tensor, dim: int | None) -> Tensor:
    """The norms of the rows along ``dim``, sizes of 1 elsewhere; of all, shape (), for None."""
    if dim is not None and weight.ndim == 1:  # no dimension would be all of them
        return weight.abs()
    axes = None if dim is None else _others(weight, dim)
    keepdim = dim is not None
    if torch.compiler.is_compiling() or weight.device.type == "mps":
        norms: Tensor = torch.linalg.vector_norm(weight, dim=axes, keepdim=keepdim)
        return norms
    # No square leaves the range of a float32 there; a compiled program would pay for that.
    exact = torch.promote_types(weight.dtype, torch.float64)
    norms = torch.linalg.vector_norm(weight, dim=axes, keepdim=keepdim, dtype=exact)
    return norms.to(weight.dtype.to_real())


def _lengths(weight: Tensor, dim: int | None) -> Tensor:
    """What the rows are divided by, differentiable any number of times: 1 for a row of zeros."""
    is_zero = norm_except(weight.detach(), dim) == 0
    return torch.where(is_zero, 1, norm_except(torch.where(is_zero, 1, weight), dim))


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


def columns_of(operand: Tensor) -> tuple[int, ...]:
    """The dimensions of a view's operand over which its rows extend."""
    return (1,) if operand.ndim == 2 else (0, 2)


def wide(tensor: Tensor) -> Tensor:
    """Half precision is computed in float32."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
