"""What is left once sigma is known, on plain CPU tensors: W / sigma, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign, inf

import torch
from torch import Tensor

from . import tiles
from .calls import GradientCall, Gradients
from .huge_pages import LARGE, huge_pages_like
from .matrix_view import MatrixView, flat
from .rescaling import PLAIN, Rescaling
from .torch_any_device import in_dtype_of

_FEW = 2**14  # elements
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HUGE = {dtype: torch.finfo(dtype).max for dtype in _DTYPES}
_TINY = {dtype: torch.finfo(dtype).tiny for dtype in _DTYPES}


def divisor(sigma: Tensor, number: float, rescaling: Rescaling) -> tuple[Tensor, float]:
    """What the weight is divided by, shape (); and without a scale, as a number, 0 for no sigma.

    As :func:`.rescaling.divisor`; ``number`` is sigma.
    """
    if rescaling is PLAIN and abs(number) >= _TINY[sigma.dtype]:
        return sigma, number
    bound = rescaling.bound
    is_divided = not (abs(number) <= bound if bound else abs(number) < _TINY[sigma.dtype])
    by = (abs(number) / bound if bound else number) if is_divided else 1.0
    scale = rescaling.scale
    if rescaling.learned is not None:
        scale *= rescaling.learned.item()
    whole = by / scale if scale else inf
    return torch.full_like(sigma, _rounded(whole, sigma.dtype)), by if is_divided else 0.0


def divide(weight: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight / by`` in ``dtype`` and the weight's layout."""
    if weight.dtype != dtype:
        weight = in_dtype_of(weight, by)
    # Half precision over a float32 scalar is divided in float32 and rounded once.
    if weight.nbytes < LARGE:
        weight_sn = weight / by
    else:
        weight_sn = torch.div(weight, by, out=huge_pages_like(weight, weight.dtype))
    return weight_sn if weight_sn.dtype == dtype else weight_sn.to(dtype)


def rescale_backward_together(calls: Sequence[GradientCall]) -> list[Gradients]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return [rescale_backward(*call) for call in calls]


def rescale_backward(
    grad: Tensor,
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
    rescaling: Rescaling = PLAIN,
) -> Gradients:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    dtype, wide, number = weight.dtype, u.dtype, sigma.item()
    is_wide = grad.dtype == dtype == wide
    if is_wide and rescaling is PLAIN and abs(number) >= _TINY[wide]:
        # As below, in fewest steps: a small weight's gradient takes no longer than they do.
        v = view.columns_to_memory(v)
        along = torch.dot(flat(weight), flat(grad)).item() / number
        if view.P == 1 and weight.nbytes < LARGE:
            matrix = grad.as_strided((view.M, view.Q), (view.Q, 1))
            inverse = 1 / number
            alpha = _rounded(-along * inverse, wide)
            gradient = torch.addr(matrix, u, v, beta=inverse, alpha=alpha)
            # No view: it may be changed in place.
            if weight.is_contiguous():
                return Gradients(gradient.resize_as_(weight))
            return Gradients(gradient.as_strided_(weight.size(), weight.stride()))
        return Gradients(_gradient_like(weight, grad, view, u, v, sigma, along, is_wide))
    by, unscaled = divisor(sigma, number, rescaling)
    learned, wide_weight, wide_grad = rescaling.learned, weight, grad
    if not is_wide:
        wide_weight, wide_grad = widened(weight, wide), widened(grad, wide)
        is_wide = wide_grad.dtype == wide_weight.dtype == wide
    inner = 0.0
    if unscaled or learned is not None:
        inner = _inner(wide_weight, wide_grad, wide, is_wide)
    if not unscaled:  # a product with a constant
        gradient = divide(grad, by, dtype)
    else:
        v, along = view.columns_to_memory(v), inner / number
        gradient = _gradient_like(weight, wide_grad, view, u, v, by, along, is_wide)
    if learned is None:
        return Gradients(gradient)
    grad_scale = _rounded(inner / (unscaled or 1.0), learned.dtype)
    return Gradients(gradient, torch.full_like(learned, grad_scale))


def _gradient_like(
    weight: Tensor,
    grad: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    by: Tensor,
    along: float,
    is_wide: bool,
) -> Tensor:
    """``(G - along u v^T) / by`` in the dtype and layout of ``weight``."""
    dtype, wide = weight.dtype, u.dtype
    operand = view.operand(grad)
    if not is_wide:
        result = torch.empty_like(weight, dtype=dtype)
        into = view.operand(result)
        for at, rows, columns in tiles.tiles(operand):
            into[at] = _gradient(operand[at].to(wide), u[rows], v[columns], by, along)
        return result
    out = huge_pages_like(weight, wide) if weight.nbytes >= LARGE else None
    if out is None:
        # No view: it may be changed in place.
        out = _gradient(operand, u, v, by, along)
        out.as_strided_(weight.size(), weight.stride())
    else:
        _gradient(operand, u, v, by, along, view.operand(out))
    return out if wide == dtype else out.to(dtype)


def _gradient(
    grad: Tensor, u: Tensor, v: Tensor, by: Tensor, along: float, out: Tensor | None = None
) -> Tensor:
    """``(G - along u v^T) / by`` in the memory order of the operand ``G``."""
    number = by.item()
    inverse = 1 / number if number else copysign(inf, number)
    beta, alpha = _rounded(inverse, u.dtype), _rounded(-along * inverse, u.dtype)
    if grad.ndim == 2:
        return torch.addr(grad, u, v, beta=beta, alpha=alpha, out=out)
    P, M, Q = grad.shape
    if grad.numel() < _FEW:  # a product of matrices takes longer to start
        outer = u.view(M, 1), v.view(P, 1, Q)
        return torch.addcmul(grad, *outer, value=_rounded(-along, u.dtype)).div_(by)
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


def widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype`` if it is no more than a block, which is quicker in one piece."""
    if tensor.dtype == dtype or tensor.numel() > tiles.ELEMENTS:
        return tensor
    return tensor.to(dtype)
