"""Weight normalization of plain CPU tensors: by torch's fused operation, where that is right.

It takes two passes over each row, which is in cache by the second. A row of zeros it divides by
zero, and its second derivatives take the norms for constants: so the graph is ours.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ..torch_internals.parametrize import fused_weight_norm, fused_weight_norm_backward
from . import torch_row_scaling
from .matrix_view import MatrixView
from .row_scaling import RowScaled, RowScaling, RowScalingGradient

HAS_FUSED = None not in (fused_weight_norm, fused_weight_norm_backward)
_IRREGULAR = {  # zero and infinity, least significant byte first
    torch.float32: (bytes(4), b"\x00\x00\x80\x7f"),
    torch.float64: (bytes(8), b"\x00\x00\x00\x00\x00\x00\xf0\x7f"),
}


def scale_rows(weight: Tensor, view: MatrixView, g: Tensor, dtype: torch.dtype) -> RowScaled:
    """As :class:`snorm_triton.ops.backend.Backend` says; the norms have the shape of ``g``."""
    form = _fused_form(weight, view, g) if weight.dtype == dtype == g.dtype else None
    if form is not None:
        v, g, dim = form
        result, norms = fused_weight_norm(v, g, dim)
    else:
        rows = view.operand(torch_row_scaling.wide(weight))
        norms = torch.linalg.vector_norm(rows, dim=torch_row_scaling.columns_of(rows))
    if not all_regular(norms):
        return torch_row_scaling.scale_rows(weight, view, g, dtype)
    if form is None:
        return RowScaled(torch_row_scaling.scaled(rows, norms, g, dtype, weight), norms)
    return RowScaled(result if v is weight else _like(weight, result), norms)


def scale_rows_backward(
    grad: Tensor, weight: Tensor, view: MatrixView, g: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    form = _fused_form(weight, view, g)
    if form is None or norms.ndim != form[1].ndim or grad.dtype != weight.dtype:
        return torch_row_scaling.scale_rows_backward(grad, weight, view, g, norms.view(view.M))
    v, scales, dim = form
    if v is weight:
        result: tuple[Tensor, Tensor] = fused_weight_norm_backward(grad, v, g, norms, dim)
        return result
    grads = view.operand(grad) if dim == 0 else view.operand(grad).mT
    grad_v, grad_g = fused_weight_norm_backward(grads, v, scales, norms, dim)
    return _like(weight, grad_v), _like(g, grad_g)


def scale_rows_together(calls: Sequence[RowScaling]) -> list[RowScaled]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [scale_rows(*call) for call in calls]


def scale_rows_backward_together(
    calls: Sequence[RowScalingGradient],
) -> list[tuple[Tensor, Tensor]]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [scale_rows_backward(*call) for call in calls]


def all_regular(norms: Tensor) -> bool:
    """Whether none of the norms is zero or infinite; False also where that is not sure.

    Looked for in memory: an operation would take as long as the norms of a small weight.
    """
    held = ctypes.string_at(norms.data_ptr(), norms.nbytes)
    zero, infinite = _IRREGULAR[norms.dtype]
    return zero not in held and infinite not in held and sys.byteorder == "little"


def _fused_form(weight: Tensor, view: MatrixView, g: Tensor) -> tuple[Tensor, Tensor, int] | None:
    """The weight with its rows along the first or last dimension of memory, g alike, and which.

    None where they are along neither.
    """
    if not HAS_FUSED or (view.P > 1 and view.Q > 1):
        return None
    if view.P > 1:
        return view.operand(weight).mT, g.reshape(1, view.M), 1
    if weight.shape[0] == view.M and g.ndim == weight.ndim and weight.is_contiguous():
        return weight, g, 0
    return view.operand(weight), g.reshape(view.M, 1), 0


def _like(weight: Tensor, result: Tensor) -> Tensor:
    """``result`` laid out as the weight: itself, for a view could not be changed in place."""
    return result.as_strided_(weight.shape, weight.stride())
