"""The operations on plain CPU tensors, as in :mod:`snorm_triton.eager` but in fewer steps.

On the CPU a scalar can be read as soon as it is computed, so norms, sigma and the decisions about
zero and non-finite weights are Python numbers here, and each weight-sized result is one pass. Half
precision is widened in blocks that stay in cache: nothing that is larger than a block and as large
as the weight is allocated but the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import copysign, inf, isfinite

import torch
from torch import Tensor
from torch.nn import Parameter

from . import eager
from .eager import in_dtype_of
from .fresh_memory import huge_pages_like
from .matrix_view import MatrixView

# A sum of squares between these lost nothing that counts to under- or overflow, in any dtype.
_SAFE_SQUARES = 2.0**-60, 2.0**60
_BLOCK = 2**18  # elements widened at a time: 1 MiB of float32


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
    operand = view.operand(_widened(weight, u.dtype))
    columns = view.columns_to_memory(v)
    if n_power_iterations > 0:
        u, columns, sigma = _power_step(operand, u, columns, n_power_iterations)
    else:
        u, columns = (x / _norm(x).clamp_(min=eps) for x in (u, columns))
        sigma = torch.dot(u, _matvec(operand, columns))
    v = view.columns_to_logical(columns)
    if buffers:
        torch._foreach_copy_(buffers, (u, v, sigma)[-len(buffers) :])
    return rescale(weight, sigma, dtype), u, v, sigma


def rescale(weight: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """As :func:`snorm_triton.eager.rescale`."""
    if weight.dtype != dtype:
        weight = in_dtype_of(weight, sigma)
    # Half precision over a float32 scalar is divided in float32 and rounded once.
    weight_sn = torch.div(weight, _nonzero(sigma), out=huge_pages_like(weight, weight.dtype))
    return weight_sn if weight_sn.dtype == dtype else weight_sn.to(dtype)


def rescale_backward(
    grad: Tensor, weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, sigma: Tensor
) -> Tensor:
    """As :func:`snorm_triton.eager.rescale_backward`."""
    dtype, weight, grad = weight.dtype, _widened(weight, u.dtype), _widened(grad, u.dtype)
    v, nonzero = view.columns_to_memory(v), _nonzero(sigma)
    divisor, coefficient = nonzero.item(), 0.0
    if nonzero is sigma:  # a weight whose sigma is zero was divided by 1, whatever it is
        inner = _dot(view.flat(weight), view.flat(grad), u.dtype)
        coefficient = -inner / divisor / divisor
        if isfinite(coefficient) and abs(coefficient) > torch.finfo(u.dtype).max:
            coefficient = copysign(inf, coefficient)  # as the dtype's own arithmetic would give
    operand, beta = view.operand(grad), 1 / divisor
    if grad.dtype == weight.dtype == u.dtype:
        out = huge_pages_like(weight, u.dtype)
        into = None if out is None else view.operand(out)
        result = _add_outer(operand, u, v, beta, coefficient, into)
        result = result.as_strided(weight.size(), weight.stride())
        return result if result.dtype == dtype else result.to(dtype)
    result = torch.empty_like(weight, dtype=dtype)
    into = view.operand(result)
    for rows, block in _row_blocks(operand, u.dtype):
        into[..., rows, :] = _add_outer(block, u[rows], v, beta, coefficient)
    return result


def _power_step(
    operand: Tensor, u: Tensor, v: Tensor, n_power_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`snorm_triton.eager.power_step`, v in memory column order."""
    sigma, moved = u, False
    for _ in range(n_power_iterations):
        t = _matvec(operand, v)
        t.div_(_nonzero(_norm(t)))
        s = _matvec_transposed(operand, t)
        sigma = _norm(s)
        if not 0 < sigma.item() < inf:
            break
        u, v, moved = t, s.div_(sigma), True
    return (u, v, sigma) if moved else (u.clone(), v.clone(), sigma)


def _matvec(operand: Tensor, v: Tensor) -> Tensor:
    if operand.dtype == v.dtype:
        return eager.matvec(operand, v)
    return torch.cat([eager.matvec(block, v) for _, block in _row_blocks(operand, v.dtype)])


def _matvec_transposed(operand: Tensor, u: Tensor) -> Tensor:
    if operand.dtype == u.dtype:
        return eager.matvec_transposed(operand, u)
    s = operand.new_zeros(operand.numel() // len(u), dtype=u.dtype)
    for rows, block in _row_blocks(operand, u.dtype):
        s += eager.matvec_transposed(block, u[rows])
    return s


def _add_outer(
    operand: Tensor, u: Tensor, v: Tensor, beta: float, alpha: float, out: Tensor | None = None
) -> Tensor:
    """``beta W + alpha u v^T`` in the memory order of the operand ``W``."""
    if operand.ndim == 2:
        return torch.addr(operand, u, v, beta=beta, alpha=alpha, out=out)
    P, M, Q = operand.shape
    u, v = u.view(1, M, 1).expand(P, M, 1), v.view(P, 1, Q)
    if out is None:  # autocast, which a backward may be under, leaves alone what is told where to
        out = operand.new_empty(P, M, Q)
    return torch.baddbmm(operand, u, v, beta=beta, alpha=alpha, out=out)


def _dot(a: Tensor, b: Tensor, dtype: torch.dtype) -> float:
    if a.dtype == b.dtype == dtype:
        return torch.dot(a, b).item()
    blocks = zip(a.split(_BLOCK), b.split(_BLOCK), strict=True)
    return sum(torch.dot(x.to(dtype), y.to(dtype)).item() for x, y in blocks)


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype`` if it is no more than a block, which is quicker in one piece."""
    if tensor.dtype == dtype or tensor.numel() > _BLOCK:
        return tensor
    return tensor.to(dtype)


def _row_blocks(operand: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Neighbouring rows of W, and W of these rows in ``dtype``."""
    M = operand.shape[-2]
    at_once = max(1, _BLOCK * M // operand.numel())
    for start in range(0, M, at_once):
        rows = slice(start, start + at_once)
        yield rows, operand[..., rows, :].to(dtype)


def _norm(x: Tensor) -> Tensor:
    square = torch.dot(x, x)
    if _SAFE_SQUARES[0] < square.item() < _SAFE_SQUARES[1]:
        return square.sqrt_()
    return eager.norm(x).to(x.dtype)


def _nonzero(sigma: Tensor) -> Tensor:
    """As :func:`snorm_triton.eager.nonzero`: ``sigma`` itself where it is not zero."""
    return torch.ones_like(sigma) if abs(sigma.item()) < torch.finfo(sigma.dtype).tiny else sigma
