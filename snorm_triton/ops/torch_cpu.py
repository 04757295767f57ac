"""The backend on plain CPU tensors: as :mod:`.torch_any_device`, in fewer steps.

On the CPU a scalar can be read as soon as it is computed, so norms, sigma and the decisions about
zero and non-finite weights are Python numbers here, and each weight-sized result is one pass. Half
precision is widened in blocks that stay in cache: nothing that is larger than a block and as large
as the weight is allocated but the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import copysign, inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import torch_any_device
from .calls import Call, Evaluate, GradientCall, Iterate, Normalized, Replay, State
from .huge_pages import huge_pages_like
from .matrix_view import MatrixView
from .power_iteration import norm as exact_norm
from .torch_any_device import in_dtype_of

_BLOCK = 2**18  # elements taken at a time: 1 MiB of float32 stays in a processor's own cache
_CACHE = 32 * 2**20  # bytes that the processors' shared cache may hold
_LONG = 2**14  # summands from which on float32 sums lose what counts: they are in float64


def takes(device: torch.device, dtype: torch.dtype, kind: type[Tensor]) -> bool:
    """Whether such a tensor is real and in the CPU's memory: no subclass, as what is traced is."""
    return device.type == "cpu" and kind in (Tensor, Parameter) and not dtype.is_complex


def normalize(calls: Sequence[Call], apart: bool = False) -> list[Normalized]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    normalized = []
    for weight, view, u, v, step, dtype in calls:
        if type(step) is Iterate:
            state = _iterate(_operand(weight, view, u.dtype), view, u, v, step.n)
        elif type(step) is Evaluate:
            u, columns = (x / _norm(x).clamp_(min=step.eps) for x in (u, view.columns_to_memory(v)))
            sigma = torch.dot(u, _matvec(_operand(weight, view, u.dtype), columns))
            state = State(u, view.columns_to_logical(columns), sigma)
        else:
            assert isinstance(step, Replay)
            state = State(u.clone(), v.clone(), step.sigma.clone())
        normalized.append(Normalized(rescale(weight, state.sigma, dtype), *state))
    return normalized


def rescale(weight: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    if weight.dtype != dtype:
        weight = in_dtype_of(weight, sigma)
    # Half precision over a float32 scalar is divided in float32 and rounded once.
    weight_sn = torch.div(weight, _nonzero(sigma), out=huge_pages_like(weight, weight.dtype))
    return weight_sn if weight_sn.dtype == dtype else weight_sn.to(dtype)


def rescale_backward(calls: Sequence[GradientCall]) -> list[Tensor]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [_gradient(*call) for call in calls]


def _gradient(
    grad: Tensor, weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, sigma: Tensor
) -> Tensor:
    dtype, weight, grad = weight.dtype, _widened(weight, u.dtype), _widened(grad, u.dtype)
    v, divisor, range_ = view.columns_to_memory(v), sigma.item(), torch.finfo(u.dtype)
    if abs(divisor) < range_.tiny:
        divisor, coefficient = 1.0, 0.0  # it was divided by 1, whatever it is
    else:
        inner = _dot(view.flat(weight), view.flat(grad), u.dtype)
        coefficient = -inner / divisor / divisor
        if abs(coefficient) > range_.max:
            coefficient = copysign(inf, coefficient)  # as the dtype's own arithmetic would give
    operand, beta = view.operand(grad), 1 / divisor
    if grad.dtype == weight.dtype == u.dtype:
        out = huge_pages_like(weight, u.dtype)
        into = None if out is None else view.operand(out)
        result = _add_outer(operand, u, v, beta, coefficient, into)
        if result.shape != weight.shape or result.stride() != weight.stride():
            result = result.as_strided(weight.size(), weight.stride())
        return result if result.dtype == dtype else result.to(dtype)
    result = torch.empty_like(weight, dtype=dtype)
    into = view.operand(result)
    for at, rows, columns in _blocks(operand):
        into[at] = _add_outer(operand[at].to(u.dtype), u[rows], v[columns], beta, coefficient)
    return result


def _operand(weight: Tensor, view: MatrixView, dtype: torch.dtype) -> Tensor:
    return view.operand(_widened(weight, dtype))


def _iterate(operand: Tensor, view: MatrixView, u: Tensor, v: Tensor, n: int) -> State:
    """As :func:`snorm_triton.ops.power_iteration.estimate`, both products of a block at a time."""
    sigma, moved, v = u, False, view.columns_to_memory(v)
    for _ in range(n):
        t, s = _products(operand, v)
        sigma = _norm(s)
        if not 0 < sigma.item() < inf:
            break
        u, v, moved = t, s.div_(sigma), True
    v = view.columns_to_logical(v)
    return State(u, v, sigma) if moved else State(u.clone(), v.clone(), sigma)


def _products(operand: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """t = W v, made a unit vector, and s = W^T t."""
    is_long = operand.dtype != v.dtype or operand.nbytes > _CACHE
    if is_long and operand.ndim == 2 and operand.is_contiguous():
        # Both products of a block of rows while it is in cache: W is read once.
        t, s = v.new_empty(len(operand)), torch.zeros_like(v)
        for at, rows, _ in _blocks(operand):
            block = operand[at].to(v.dtype)
            torch.mv(block, v, out=t[rows])
            s.addmv_(block.mT, t[rows])
        length = torch.dot(t, t)
        if _is_safe(length.item()) and _is_safe(torch.dot(s, s).item()):
            length.sqrt_()
            return t.div_(length), s.div_(length)
    t = _matvec(operand, v)
    t.div_(_nonzero(_norm(t)))
    return t, _matvec_transposed(operand, t)


def _matvec(operand: Tensor, v: Tensor) -> Tensor:
    if operand.dtype == v.dtype:
        return torch_any_device.matvec(operand, v)
    t = v.new_zeros(operand.shape[-2])
    for at, rows, columns in _blocks(operand):
        t[rows] += torch_any_device.matvec(operand[at].to(v.dtype), v[columns])
    return t


def _matvec_transposed(operand: Tensor, u: Tensor) -> Tensor:
    if operand.dtype == u.dtype:
        return torch_any_device.matvec_transposed(operand, u)
    s = u.new_zeros(operand.numel() // len(u))
    for at, rows, columns in _blocks(operand):
        s[columns] += torch_any_device.matvec_transposed(operand[at].to(u.dtype), u[rows])
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


def _blocks(operand: Tensor) -> Iterator[tuple[Any, slice, slice]]:
    """Parts of W that are neighbours in memory: where in the operand, which rows and columns."""
    axis, everything = 0 if operand.is_contiguous() else 1, slice(None)
    size = operand.shape[axis]
    at_once = max(1, _BLOCK * size // operand.numel())
    for start in range(0, size, at_once):
        part = slice(start, start + at_once)
        if operand.ndim == 3:  # (P, M, Q)
            Q = operand.shape[2]
            yield part, everything, slice(start * Q, (start + at_once) * Q)
        elif axis == 0:
            yield part, part, everything
        else:
            yield (everything, part), everything, part


def _norm(x: Tensor) -> Tensor:
    square = torch.dot(x, x)
    return square.sqrt_() if _is_safe(square.item()) else exact_norm(x).to(x.dtype)


def _is_safe(square: float) -> bool:
    """Whether a sum of squares lost nothing that counts to under- or overflow, in any dtype."""
    return 2.0**-60 < square < 2.0**60


def _nonzero(sigma: Tensor) -> Tensor:
    """As :func:`.torch_any_device.nonzero`: ``sigma`` itself where it is not zero."""
    return torch.ones_like(sigma) if abs(sigma.item()) < torch.finfo(sigma.dtype).tiny else sigma
