"""The backend on plain CPU tensors: as :mod:`.torch_any_device`, in fewer steps.

On the CPU a scalar can be read as soon as it is computed, so norms, sigma and the decisions about
zero and non-finite weights are Python numbers here, and each weight-sized result is one pass.
Nothing that is larger than a tile and as large as the weight is allocated but the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign, inf

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import Parameter

from . import tiles
from .calls import Call, Evaluate, GradientCall, Iterate, Normalized, Replay, Step
from .huge_pages import LARGE, huge_pages_like
from .matrix_view import MatrixView, flat
from .power_iteration import norm as exact_norm
from .power_iteration import start_like
from .rounds import EachTime
from .torch_any_device import in_dtype_of
from .torch_cpu_row_scaling import scale_rows as scale_rows
from .torch_cpu_row_scaling import scale_rows_backward as scale_rows_backward
from .torch_cpu_row_scaling import scale_rows_backward_together as scale_rows_backward_together
from .torch_cpu_row_scaling import scale_rows_together as scale_rows_together

_Estimated = tuple[Tensor, Tensor, Tensor, float]  # u, v and sigma, and sigma as a number
_SMALL, _LARGE = 2.0**-30, 2.0**30  # between them no square loses anything that counts
_FEW = 2**14  # elements
_LONG = 2**14  # elements from which on a length is better taken in float64
_HUGE = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.float64)}
_TINY = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64)}


def takes(device: torch.device, dtype: torch.dtype, kind: type[Tensor]) -> bool:
    """Whether such a tensor is real and in the CPU's memory: no subclass, as what is traced is."""
    return device.type == "cpu" and kind in (Tensor, Parameter) and not dtype.is_complex


def normalize(
    weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, step: Step, dtype: torch.dtype
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
    return Normalized(_divide(weight, sigma, number, dtype), u, v, sigma)


def normalize_together(calls: Sequence[Call], apart: bool = False) -> list[Normalized]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [normalize(*call) for call in calls]


def _divide(weight: Tensor, sigma: Tensor, number: float, dtype: torch.dtype) -> Tensor:
    if abs(number) < _TINY[sigma.dtype]:
        sigma = torch.ones_like(sigma)
    if weight.dtype != dtype:
        weight = in_dtype_of(weight, sigma)
    # Half precision over a float32 scalar is divided in float32 and rounded once.
    if weight.nbytes < LARGE:
        weight_sn = weight / sigma
    else:
        weight_sn = torch.div(weight, sigma, out=huge_pages_like(weight, weight.dtype))
    return weight_sn if weight_sn.dtype == dtype else weight_sn.to(dtype)


def rescale_backward_together(calls: Sequence[GradientCall]) -> list[Tensor]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [rescale_backward(*call) for call in calls]


def rounds(calls: Sequence[Call]) -> EachTime:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return EachTime(calls, normalize_together, rescale_backward_together)


def rescale_backward(
    grad: Tensor, weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, sigma: Tensor
) -> Tensor:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    dtype, wide, number = weight.dtype, u.dtype, sigma.item()
    if abs(number) < _TINY[wide]:  # it was divided by 1, whatever it is
        return grad.to(dtype, copy=True)
    is_wide = grad.dtype == dtype == wide
    if not is_wide:
        weight, grad = _widened(weight, wide), _widened(grad, wide)
        is_wide = grad.dtype == weight.dtype == wide
    along = _inner(weight, grad, wide, is_wide) / number
    if view.K != 1:
        v = view.columns_to_memory(v)
    operand = view.operand(grad)
    if not is_wide:
        result = torch.empty_like(weight, dtype=dtype)
        into = view.operand(result)
        for at, rows, columns in tiles.tiles(operand):
            into[at] = _gradient(operand[at].to(wide), u[rows], v[columns], sigma, along)
        return result
    place = None
    if weight.nbytes >= LARGE and (out := huge_pages_like(weight, wide)) is not None:
        place = view.operand(out)
    result = _gradient(operand, u, v, sigma, along, place)
    if operand is not grad:
        result = result.as_strided(weight.size(), weight.stride())
    return result if wide == dtype else result.to(dtype)


def _iterate(weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, n: int) -> _Estimated:
    """As :func:`snorm_triton.ops.power_iteration.estimate`."""
    is_plain = view.P == 1 and weight.dtype == u.dtype
    operand = view.operand(weight) if is_plain else _operand(weight, view, u.dtype)
    if view.K != 1:
        v = view.columns_to_memory(v)
    is_small = operand.ndim == 2 and max(operand.shape) <= tiles.SUMMANDS
    is_small = is_small and operand.dtype == v.dtype
    moved = False
    for _ in range(n):
        if is_small:
            t = torch.mv(operand, v)
            length, number = _norm(t)
            t = t.div_(length) if number != 0 else start_like(t)
            s = torch.mv(operand.mT, t)
        else:
            t, s = _products(operand, v)
        sigma, number = _norm(s)
        if not 0 < number < inf:
            break
        u, v, moved = t, s.div_(sigma), True
    if not moved:
        u, v = u.clone(), v.clone()
    return u, v if view.K == 1 else view.columns_to_logical(v), sigma, number


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


def _gradient(
    grad: Tensor, u: Tensor, v: Tensor, sigma: Tensor, along: float, out: Tensor | None = None
) -> Tensor:
    """``(G - along u v^T) / sigma`` in the memory order of the operand ``G``."""
    number = sigma.item()
    beta, alpha = 1 / number, _rounded(-along / number, u.dtype)
    if grad.ndim == 2:
        return torch.addr(grad, u, v, beta=beta, alpha=alpha, out=out)
    P, M, Q = grad.shape
    if grad.numel() < _FEW:  # a product of matrices takes longer to start
        outer = u.view(M, 1), v.view(P, 1, Q)
        return torch.addcmul(grad, *outer, value=_rounded(-along, u.dtype)).div_(sigma)
    if out is None:  # autocast, which a backward may be under, leaves alone what is told where to
        out = grad.new_empty(P, M, Q)
    u, v = u.view(1, M, 1).expand(P, M, 1), v.view(P, 1, Q)
    return torch.baddbmm(grad, u, v, beta=beta, alpha=alpha, out=out)


def _rounded(number: float, dtype: torch.dtype) -> float:
    """Infinite where ``dtype`` has no such number, as its own arithmetic would give."""
    return copysign(inf, number) if abs(number) > _HUGE[dtype] else number


def _inner(a: Tensor, b: Tensor, dtype: torch.dtype, is_wide: bool) -> float:
    """The sum of the products of the elements of two tensors that are laid out alike, and dense.

    ``is_wide``: they are of ``dtype``.
    """
    a, b = flat(a), flat(b)
    if is_wide:
        return torch.dot(a, b).item()
    pairs = zip(a.split(tiles.ELEMENTS), b.split(tiles.ELEMENTS), strict=True)
    return sum(torch.dot(x.to(dtype), y.to(dtype)).item() for x, y in pairs)


def _operand(weight: Tensor, view: MatrixView, dtype: torch.dtype) -> Tensor:
    """W in memory column order; as one matrix where it is no more than a tile, which is quicker."""
    if weight.dtype != dtype:
        weight = _widened(weight, dtype)
    operand = view.operand(weight)
    if operand.ndim == 3 and operand.numel() <= tiles.ELEMENTS:
        return operand.transpose(0, 1).reshape(view.M, view.N)
    return operand


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype`` if it is no more than a block, which is quicker in one piece."""
    if tensor.dtype == dtype or tensor.numel() > tiles.ELEMENTS:
        return tensor
    return tensor.to(dtype)


def _norm(x: Tensor) -> tuple[Tensor, float]:
    """The length of ``x``, as a tensor and as a number."""
    if x.numel() <= _LONG:
        length = vector_norm(x)
        number = length.item()
        if _SMALL < number < _LARGE:
            return length, number
    length = exact_norm(x).to(x.dtype)
    return length, length.item()
