"""The derivatives of W / sigma in torch's own differentiable operations, u and v held constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .calls import Gradients
from .rescaling import PLAIN, Rescaling, divides, divisor, nonzero
from .torch_any_device import in_dtype_of

Pair = tuple[Tensor | None, Tensor | None]
"""Of a weight and of its learned scale: gradients where there are any."""


class SecondDerivatives(NamedTuple):
    """Those by the incoming gradient, by the weight, and by its learned scale if it has one."""

    grad: Tensor | None
    weight: Tensor | None
    scale: Tensor | None


def outer(u: Tensor, v: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """``u v^T`` of shape (M, N) folded into the weight's shape."""
    others = [size for axis, size in enumerate(shape) if axis != dim]
    return torch.outer(u, v).view(shape[dim], *others).movedim(0, dim)


def gradient_in_torch(
    grad: Tensor,
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    dim: int,
    rescaling: Rescaling = PLAIN,
    sum_over_shards: Callable[[Tensor], Tensor] = lambda whole: whole,
) -> Gradients:
    """As :class:`.backend.Backend` has it, differentiable in ``grad``, ``weight`` and the scale."""
    wide, wide_grad = in_dtype_of(weight, u), in_dtype_of(grad, u)
    direction = outer(u, v, weight.shape, dim)
    sigma = sum_over_shards((direction * wide).sum())
    inner = sum_over_shards((wide_grad * wide).sum())
    by = divisor(sigma, rescaling.bound)
    along = torch.where(divides(sigma, rescaling.bound), inner / nonzero(sigma), 0)
    grad_weight = rescaling.multiplier(by) * (wide_grad - along * direction) / by
    learned = rescaling.learned
    grad_scale = None if learned is None else (inner / by).to(learned.dtype).view(1)
    return Gradients(grad_weight.to(weight.dtype), grad_scale)


def second_derivatives(
    grads_out: Pair,
    grad: Tensor,
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    dim: int,
    rescaling: Rescaling = PLAIN,
) -> SecondDerivatives:
    """The derivatives of ``<H, D> + h d`` for the gradients D of the weight and d of its scale.

    With G the incoming gradient, P = u v^T, k = 1 / sigma or with a bound bound / |sigma|, and s
    the scale, D = s k (G - <G, W> / sigma P) and d = k <G, W>. Where W is not divided by sigma
    D = s G and d = <G, W>. From W itself, sigma included, so that derivatives of any order are
    right.

    Args:
        grads_out: H and h; either may be None, and nothing is computed where both are.
    """
    grad_out, of_scale_out = grads_out
    if grad_out is None and of_scale_out is None:
        return SecondDerivatives(None, None, None)
    dtypes, learned = (grad.dtype, weight.dtype), rescaling.learned
    grad, weight = grad.to(u.dtype), weight.to(u.dtype)
    direction = outer(u, v, weight.shape, dim)
    sigma = (direction * weight).sum()
    is_divided, k = divides(sigma, rescaling.bound), 1 / divisor(sigma, rescaling.bound)
    sigma, inner, s = nonzero(sigma), (grad * weight).sum(), rescaling.multiplier(sigma)
    of_grad, of_weight = torch.zeros_like(grad), torch.zeros_like(weight)
    of_scale = torch.zeros_like(inner)
    if grad_out is not None:
        h = grad_out.to(u.dtype)
        along = torch.where(is_divided, (direction * h).sum(), 0)
        both = (h * grad).sum() - along * inner / sigma
        of_grad = s * k * (h - along * (weight / sigma))
        turned = along * inner / sigma - both
        of_weight = torch.where(is_divided, s * k * (turned * direction - along * grad) / sigma, 0)
        of_scale = k * both
    if of_scale_out is not None:
        h = of_scale_out.to(u.dtype).reshape(())
        of_grad = of_grad + h * k * weight
        of_weight = of_weight + h * k * (
            grad - torch.where(is_divided, inner / sigma, 0) * direction
        )
    return SecondDerivatives(
        of_grad.to(dtypes[0]),
        of_weight.to(dtypes[1]),
        None if learned is None else of_scale.to(learned.dtype).view(1),
    )
