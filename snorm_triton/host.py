"""The operations on plain CPU tensors, as in :mod:`snorm_triton.eager` but in fewer steps.

On the CPU a scalar can be read as soon as it is computed, so norms, sigma and the decisions about
zero and non-finite weights are Python numbers here, and each weight-sized result is one pass.
"""

from __future__ import annotations

from math import copysign, inf, isfinite

import torch
from torch import Tensor
from torch.nn import Parameter

from . import eager
from .eager import in_dtype_of, matvec, matvec_transposed
from .fresh_memory import huge_pages_like
from .matrix_view import MatrixView

# A sum of squares between these lost nothing that counts to under- or overflow, in any dtype.
_SAFE_SQUARES = 2.0**-60, 2.0**60


def takes(weight: Tensor) -> bool:
    """Whether ``weight`` is a real tensor in the CPU's memory: no subclass, nothing traced."""
    return (
        weight.device.type == "cpu"
        and type(weight) in (Tensor, Parameter)
        and not weight.is_complex()
        and not torch.compiler.is_compiling()
    )


def normalize(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    n_power_iterations: int,
    eps: float,
    dtype: torch.dtype,
    buffers: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`snorm_triton.eager.normalize`."""
    wide = in_dtype_of(weight, u)
    operand, columns = view.operand(wide), view.columns_to_memory(v)
    if n_power_iterations > 0:
        u, columns, sigma = _power_step(operand, u, columns, n_power_iterations)
    else:
        u, columns = (x / _norm(x).clamp_(min=eps) for x in (u, columns))
        sigma = torch.dot(u, matvec(operand, columns))
    v = view.columns_to_logical(columns)
    if buffers:
        torch._foreach_copy_(buffers, (u, v, sigma)[-len(buffers) :])
    return rescale(wide, sigma, dtype), u, v, sigma


def rescale(weight: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """As :func:`snorm_triton.eager.rescale`."""
    weight = in_dtype_of(weight, sigma)
    out = huge_pages_like(weight, weight.dtype)
    weight_sn = torch.div(weight, _nonzero(sigma), out=out)
    return weight_sn if weight_sn.dtype == dtype else weight_sn.to(dtype)


def rescale_backward(
    grad: Tensor,
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
) -> Tensor:
    """As :func:`snorm_triton.eager.rescale_backward`."""
    grad, v = in_dtype_of(grad, u), view.columns_to_memory(v)
    nonzero = _nonzero(sigma)
    divisor, coefficient = nonzero.item(), 0.0
    if nonzero is sigma:  # a weight whose sigma is zero was divided by 1, whatever it is
        inner = torch.dot(view.flat(in_dtype_of(weight, u)), view.flat(grad)).item()
        coefficient = -inner / divisor / divisor
        if isfinite(coefficient) and abs(coefficient) > torch.finfo(u.dtype).max:
            coefficient = copysign(inf, coefficient)  # as the dtype's own arithmetic would give
    grad, out = view.operand(grad), huge_pages_like(weight, u.dtype)
    out = None if out is None else view.operand(out)
    if grad.ndim == 2:
        result = torch.addr(grad, u, v, beta=1 / divisor, alpha=coefficient, out=out)
    else:
        P, M, Q = grad.shape
        u, v = u.view(1, M, 1).expand(P, M, 1), v.view(P, 1, Q)
        result = torch.baddbmm(grad, u, v, beta=1 / divisor, alpha=coefficient, out=out)
    result = result.as_strided(weight.size(), weight.stride())
    return result if result.dtype == weight.dtype else result.to(weight.dtype)


def _power_step(
    operand: Tensor, u: Tensor, v: Tensor, n_power_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`snorm_triton.eager.power_step`, v in memory column order."""
    sigma, moved = u, False
    for _ in range(n_power_iterations):
        t = matvec(operand, v)
        t.div_(_nonzero(_norm(t)))
        s = matvec_transposed(operand, t)
        sigma = _norm(s)
        if not 0 < sigma.item() < inf:
            break
        u, v, moved = t, s.div_(_nonzero(sigma)), True
    return (u, v, sigma) if moved else (u.clone(), v.clone(), sigma)


def _norm(x: Tensor) -> Tensor:
    square = torch.dot(x, x)
    if _SAFE_SQUARES[0] < square.item() < _SAFE_SQUARES[1]:
        return square.sqrt_()
    return eager.norm(x).to(x.dtype)


def _nonzero(sigma: Tensor) -> Tensor:
    """As :func:`snorm_triton.eager.nonzero`: ``sigma`` itself where it is not zero."""
    return torch.ones_like(sigma) if abs(sigma.item()) < torch.finfo(sigma.dtype).tiny else sigma
