"""The backend in plain torch: every device, every floating or complex dtype.

``kernels/`` is the same in Triton, ``torch_cpu.py`` for plain CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .calls import Call, GradientCall, Gradients, Normalized, Step
from .matrix_view import MatrixView, flat
from .power_iteration import estimate
from .rescaling import PLAIN, Rescaling, divides, divisor, nonzero, rescaled
from .rounds import EachTime
from .torch_row_scaling import row_rounds as row_rounds
from .torch_row_scaling import scale_rows as scale_rows
from .torch_row_scaling import scale_rows_backward as scale_rows_backward
from .torch_row_scaling import scale_rows_backward_together as scale_rows_backward_together
from .torch_row_scaling import scale_rows_together as scale_rows_together


class Matrix:
    """A dense weight as a matrix in the dtype of u and v; vectors in logical column order."""

    def __init__(self, weight: Tensor, view: MatrixView) -> None:
        self.operand = view.operand(weight)
        self.view = view

    def matvec(self, v: Tensor) -> Tensor:
        """``W v``."""
        return matvec(self.operand, self.view.columns_to_memory(v))

    def adjoint(self, u: Tensor) -> Tensor:
        """``W^H u``."""
        if self.operand.is_complex():
            # Conjugated in memory: what torch.compile calls an operator from loses a lazy one.
            u = u.conj_physical()
        s = self.view.columns_to_logical(matvec_transposed(self.operand, u))
        return s.conj_physical() if self.operand.is_complex() else s

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """``u^H W v``."""
        return torch.vdot(u, self.matvec(v))


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
    wide = in_dtype_of(weight, u)
    state = estimate(Matrix(wide, view), u, v, step)
    return Normalized(rescaled(wide, state.sigma, rescaling).to(dtype), *state)


def normalize_together(calls: Sequence[Call], apart: bool = False) -> list[Normalized]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [normalize(*call) for call in calls]


def rescale_backward_together(calls: Sequence[GradientCall]) -> list[Gradients]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [rescale_backward(*call) for call in calls]


def rounds(calls: Sequence[Call]) -> EachTime:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return EachTime(calls, normalize_together, rescale_backward_together)


def rescale_backward(
    grad: Tensor,
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
    rescaling: Rescaling = PLAIN,
    sum_over_shards: Callable[[Tensor], Tensor] = lambda whole: whole,
) -> Gradients:
    """As :class:`snorm_triton.ops.backend.Backend` says.

    Of a shard too: then ``sum_over_shards`` adds up what it takes.
    """
    wide_grad = in_dtype_of(grad, u)
    inner = sum_over_shards(torch.dot(flat(in_dtype_of(weight, u)), flat(wide_grad)))
    grad_weight = rescaled(wide_grad, sigma, rescaling)
    by = divisor(sigma, rescaling.bound)
    along = inner / nonzero(sigma) / by * rescaling.multiplier(sigma)
    # What was not divided by its sigma has the gradient of a product with a constant.
    coefficient = torch.where(divides(sigma, rescaling.bound), -along, 0)
    _add_outer_(view.operand(grad_weight), coefficient * u, view.columns_to_memory(v))
    learned = rescaling.learned
    grad_scale = None if learned is None else (inner / by).to(learned.dtype).view(1)
    return Gradients(grad_weight.to(weight.dtype), grad_scale)


def in_dtype_of(tensor: Tensor, state: Tensor) -> Tensor:
    """Half precision is computed in the dtype of u, v and sigma: float32 or more."""
    return tensor if tensor.dtype == state.dtype else tensor.to(state.dtype)


def matvec(operand: Tensor, v: Tensor) -> Tensor:
    """``W v`` of shape (M,), for ``v`` of shape (N,) in memory column order."""
    if operand.ndim == 2:
        return torch.mv(operand, v)
    P, _, Q = operand.shape
    t: Tensor = torch.bmm(operand, v.view(P, Q, 1)).sum(0).squeeze(1)
    return t


def matvec_transposed(operand: Tensor, u: Tensor) -> Tensor:
    """``W^T u`` of shape (N,) in memory column order, for ``u`` of shape (M,)."""
    if operand.ndim == 2:
        return torch.mv(operand.mT, u)
    P, M, _ = operand.shape
    return torch.bmm(u.expand(P, 1, M), operand).view(-1)


def _add_outer_(operand: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a b^T`` in place: ``a`` of shape (M,), ``b`` of shape (N,) in memory column order."""
    if operand.ndim == 2:
        operand.addr_(a, b)
    else:
        P, M, Q = operand.shape
        operand.baddbmm_(a.view(1, M, 1).expand(P, M, 1), b.view(P, 1, Q))
