"""W / sigma as nodes of the autograd graph, for one weight or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import Operations
from .eager import nonzero
from .matrix_view import MatrixView, like_weight


class Estimate(NamedTuple):
    """What was taken for the spectral norm of a dense weight, read as a matrix along ``dim``.

    u, v and sigma are an access's own, never the live buffers, which the next one overwrites.
    """

    weight: Tensor
    version: int
    view: MatrixView
    dim: int
    u: Tensor
    v: Tensor
    sigma: Tensor


def rescaled(
    ops: Operations, estimates: Sequence[Estimate], weights_sn: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """``weights_sn``, each W / sigma, made differentiable in W by one node: u and v constant."""
    weights = [estimate.weight for estimate in estimates]
    return _Rescale.apply(ops, estimates, weights_sn, *weights)  # type: ignore[no-any-return]


def differentiable_sigma(sigma: Tensor, weight: Tensor, u: Tensor, v: Tensor, dim: int) -> Tensor:
    """``sigma`` = u^T W v, made differentiable in W, u and v held constant."""
    return _Sigma.apply((sigma, u, v, dim), weight)  # type: ignore[no-any-return]


def outer(u: Tensor, v: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """``u v^T`` of shape (M, N) folded into the weight's shape."""
    others = [size for axis, size in enumerate(shape) if axis != dim]
    return torch.outer(u, v).view(-1, *others).movedim(0, dim)


class _Rescale(torch.autograd.Function):
    """weights -> weights / sigmas, already computed."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: Operations,
        estimates: Sequence[Estimate],
        weights_sn: Sequence[Tensor],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.ops = ops
        # Kept here rather than with save_for_backward: the node serves many layers, and a backward
        # through some of them must leave it whole for the others. It holds no memory but u and v.
        ctx.estimates = estimates
        return tuple(weights_sn)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        used: list[Estimate] = []
        inputs: list[Tensor] = []
        for each, grad in zip(ctx.estimates, grads, strict=True):
            if grad is not None:
                if each.weight._version != each.version:
                    raise RuntimeError(
                        f"a normalized weight of shape {tuple(each.weight.shape)} has been "
                        "modified by an inplace operation since the forward whose gradient is "
                        "computed"
                    )
                used.append(each)
                inputs += grad, each.weight
        # Where the gradient itself is to be differentiated, it is a node too.
        compute = _RescaleBackward.apply if torch.is_grad_enabled() else _rescale_backward
        grad_weights = iter(compute(ctx.ops, used, *inputs))
        return None, None, None, *[None if grad is None else next(grad_weights) for grad in grads]


class _RescaleBackward(torch.autograd.Function):
    """The gradient of ``_Rescale``, itself differentiable in the incoming gradient and in W.

    With G the gradient of W / sigma, and sigma = <u v^T, W>, it is

        D = (G - <G, W> / sigma u v^T) / sigma

    and D = G where sigma is zero and W was divided by 1.
    """

    @staticmethod
    def forward(
        ctx: Any, ops: Operations, estimates: Sequence[Estimate], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.estimates = estimates
        ctx.save_for_backward(*inputs)
        return _rescale_backward(ops, estimates, *inputs)

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor | None) -> Any:
        inputs = iter(ctx.saved_tensors)
        derivatives: list[Tensor | None] = []
        for each, grad_out in zip(ctx.estimates, grads_out, strict=True):
            grad, weight = next(inputs), next(inputs)
            if grad_out is None:
                derivatives += None, None
            else:
                derivatives += _second_derivatives(grad_out, grad, weight, each)
        return None, None, *derivatives


def _rescale_backward(
    ops: Operations, estimates: Sequence[Estimate], *inputs: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of the weights; ``inputs`` are the G and the W of each in turn."""
    calls = []
    for i, (_, _, view, dim, u, v, sigma) in enumerate(estimates):
        grad, weight = inputs[2 * i : 2 * i + 2]
        calls.append((like_weight(grad, weight, view, dim), weight, view, u, v, sigma))
    if len(calls) > 1:
        return tuple(ops.foreach_rescale_backward(calls))
    return tuple([ops.rescale_backward(*call) for call in calls])


class _Sigma(torch.autograd.Function):
    """weight -> sigma = u^T W v, already computed."""

    @staticmethod
    def forward(ctx: Any, computed: tuple[Tensor, Tensor, Tensor, int], weight: Tensor) -> Tensor:
        sigma, *ctx.direction = computed
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return sigma

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, v, dim = ctx.direction
        return None, (grad * outer(u, v, ctx.shape, dim)).to(ctx.dtype)


def _second_derivatives(
    grad_out: Tensor, grad: Tensor, weight: Tensor, estimate: Estimate
) -> tuple[Tensor, Tensor]:
    """Those of <grad_out, D> by G and W.

    In plain torch from W itself, sigma included, so that derivatives of any order are right.
    """
    dtypes, u = (grad.dtype, weight.dtype), estimate.u
    direction = outer(u, estimate.v, weight.shape, estimate.dim)
    grad_out, grad, weight = grad_out.to(u.dtype), grad.to(u.dtype), weight.to(u.dtype)
    sigma = (direction * weight).sum()
    is_zero, sigma = sigma.abs() < torch.finfo(sigma.dtype).tiny, nonzero(sigma)
    along = torch.where(is_zero, 0, (direction * grad_out).sum())
    inner = (grad * weight).sum() / sigma
    twice = 2 * along * inner - (grad_out * grad).sum()
    grad_grad = (grad_out - along * (weight / sigma)) / sigma
    grad_weight = torch.where(is_zero, 0, (twice * direction - along * grad) / sigma / sigma)
    return grad_grad.to(dtypes[0]), grad_weight.to(dtypes[1])
