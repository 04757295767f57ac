"""The backend on plain CPU tensors: as :mod:`.torch_any_device`, in fewer steps.

On the CPU a scalar can be read as soon as it is computed, so norms, sigma and the decisions about
zero and non-finite weights are Python numbers here, and each weight-sized result is one pass.
Nothing that is larger than a tile and as large as the weight is allocated but the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import Parameter

from . import tiles
from .calls import Call, Evaluate, Iterate, Normalized, Replay, Step
from .matrix_view import MatrixView
from .power_iteration import norm as exact_norm
from .power_iteration import start_like
from .rescaling import PLAIN, Rescaling
from .rounds import EachTime
from .torch_cpu_rescaling import divide, divisor, widened
from .torch_cpu_rescaling import rescale_backward as rescale_backward
from .torch_cpu_rescaling import rescale_backward_together as rescale_backward_together
from .torch_cpu_row_scaling import scale_rows as scale_rows
from .torch_cpu_row_scaling import scale_rows_backward as scale_rows_backward
from .torch_cpu_row_scaling import scale_rows_backward_together as scale_rows_backward_together
from .torch_cpu_row_scaling import scale_rows_together as scale_rows_together
from .torch_row_scaling import row_rounds as row_rounds

_Estimated = tuple[Tensor, Tensor, Tensor, float]  # u, v and sigma, and sigma as a number
_SMALL, _LARGE = 2.0**-30, 2.0**30  # between them no square loses anything that counts
_LONG = 2**14  # elements from which on a length is better taken in float64


def takes(device: torch.device, dtype: torch.dtype, kind: type[Tensor]) -> bool:
    """Whether such a tensor is real and in the CPU's memory: no subclass, as what is traced is."""
    return device.type == "cpu" and kind in (Tensor, Parameter) and not dtype.is_complex


def normalize(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    step: Step,
    dtype: torch.dtype,
    rescaling: Rescaling = PLAIN,
) -> Normalized:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    if type(step) is Iterate:
        u, v, sigma, number = _iterate(weight, view, u, v, step.n)
    elif type(step) is Evaluate:
        u, v, sigma, number = _evaluate(weight, view, u, v, step.eps)
    else:
        assert isinstance(step, Replay)
        u, v, sigma = u.clone(), v.clone(), step.sigma.clone()
        number = sigma.item()
    if rescaling is not PLAIN or not _SMALL < number < _LARGE:
        by, _ = divisor(sigma, number, rescaling)
    else:
        by = sigma
    return Normalized(divide(weight, by, dtype), u, v, sigma)


def normalize_together(calls: Sequence[Call], apart: bool = False) -> list[Normalized]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [normalize(*call) for call in calls]


def rounds(calls: Sequence[Call]) -> EachTime:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return EachTime(calls, normalize_together, rescale_backward_together)


def _iterate(weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, n: int) -> _Estimated:
    """As :func:`snorm_triton.ops.power_iteration.estimate`."""
    if view.P == 1 and weight.dtype == u.dtype:
        operand = weight.as_strided((view.M, view.Q), (view.Q, 1))
    else:
        operand = _operand(weight, view, u.dtype)
    if view.K != 1:
        v = view.columns_to_memory(v)
    is_small = view.M <= tiles.SUMMANDS and view.P * view.Q <= tiles.SUMMANDS
    estimated = None
    if is_small and operand.ndim == 2 and operand.dtype == v.dtype:
        estimated = _iterate_few(operand, v, n)
    u, v, sigma, number = estimated or _iterate_any(operand, u, v, n)
    return u, v if view.K == 1 else view.columns_to_logical(v), sigma, number


def _iterate_few(operand: Tensor, v: Tensor, n: int) -> _Estimated | None:
    """Of a matrix of few rows and columns in fewest steps: they take longer than the sums do.

    None where a length is zero, not finite, or such that squares lose digits.
    """
    for _ in range(n):
        u = torch.mv(operand, v)
        length = vector_norm(u)
        if not _SMALL < length.item() < _LARGE:
            return None
        v = torch.mv(operand.t(), u.div_(length))
        sigma = vector_norm(v)
        number = sigma.item()
        if not _SMALL < number < _LARGE:
            return None
        v.div_(sigma)
    return u, v, sigma, number


def _iterate_any(operand: Tensor, u: Tensor, v: Tensor, n: int) -> _Estimated:
    moved = False
    for _ in range(n):
        t, s = _products(operand, v)
        sigma, number = _norm(s)
        if not 0 < number < inf:
            break
        u, v, moved = t, s.div_(sigma), True
    return (u, v, sigma, number) if moved else (u.clone(), v.clone(), sigma, number)


def _evaluate(weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, eps: float) -> _Estimated:
    operand = _operand(weight, view, u.dtype)
    u, v = (x / max(_norm(x)[1], eps) for x in (u, view.columns_to_memory(v)))
    sigma = torch.dot(u, tiles.product(operand, v))
    return u, view.columns_to_logical(v), sigma, sigma.item()


def _products(operand: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """t = W v, made a unit vector, and s = W^T t."""
    both = tiles.both_products(operand, v)
    if both is not None:
        t, s = both
        length, number = _norm(t)
        if _SMALL < number < _LARGE and _SMALL < _norm(s)[1] < _LARGE:
            return t.div_(length), s.div_(length)
    else:
        t = tiles.product(operand, v)
        length, number = _norm(t)
    t = t.div_(length) if number != 0 else start_like(t)
    return t, tiles.transposed_product(operand, t)


def _operand(weight: Tensor, view: MatrixView, dtype: torch.dtype) -> Tensor:
    """W in memory column order; as one matrix where it is no more than a tile, which is quicker."""
    if weight.dtype != dtype:
        weight = widened(weight, dtype)
    operand = view.operand(weight)
    if operand.ndim == 3 and operand.numel() <= tiles.ELEMENTS:
        return operand.transpose(0, 1).reshape(view.M, view.N)
    return operand


def _norm(x: Tensor) -> tuple[Tensor, float]:
    """The length of ``x``, as a tensor and as a number."""
    if x.numel() <= _LONG:
        length = vector_norm(x)
        number = length.item()
        if _SMALL < number < _LARGE:
            return length, number
    length = exact_norm(x).to(x.dtype)
    return length, length.item()
