"""W / sigma as nodes of the autograd graph, for one weight or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import Operations
from .eager import nonzero
from .matrix_view import MatrixView, like_weight


class Normalized(NamedTuple):
    """A dense weight read as a matrix along ``dim``, and its normalization as computed."""

    weight: Tensor
    view: MatrixView
    dim: int
    weight_sn: Tensor
    u: Tensor
    v: Tensor
    sigma: Tensor


def rescaled(ops: Operations, bucket: Sequence[Normalized]) -> tuple[tuple[Tensor, Tensor], ...]:
    """(W / sigma, sigma) of each, made differentiable in W by one node, u and v held constant."""
    outputs = _Rescale.apply(ops, bucket, *(each.weight for each in bucket))
    return tuple(zip(outputs[: len(bucket)], outputs[len(bucket) :], strict=True))


def outer(u: Tensor, v: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """``u v^T`` of shape (M, N) folded into the weight's shape."""
    others = [size for axis, size in enumerate(shape) if axis != dim]
    return torch.outer(u, v).view(-1, *others).movedim(0, dim)


class _Rescale(torch.autograd.Function):
    """weights -> (weights / sigmas, sigmas), with sigma = u^T W v already computed."""

    @staticmethod
    def forward(
        ctx: Any, ops: Operations, bucket: Sequence[Normalized], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.ops = ops
        ctx.places = [(each.view, each.dim) for each in bucket]
        # Kept here rather than with save_for_backward: the node serves many layers, and a backward
        # through some of them must leave it whole for the others. It holds no memory but u and v,
        # and they are this access's own, never the live buffers, which the next one overwrites.
        _, _, _, weights_sn, us, vs, sigmas = zip(*bucket, strict=True)
        ctx.kept = (*weights, *us, *vs, *(sigma.detach() for sigma in sigmas))
        ctx.versions = [weight._version for weight in weights]
        return *weights_sn, *sigmas

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        n = len(ctx.places)
        for i, version in enumerate(ctx.versions):
            weight, used = ctx.kept[i], grads[i] is not None or grads[n + i] is not None
            if used and weight._version != version:
                raise RuntimeError(
                    f"a normalized weight of shape {tuple(weight.shape)} has been modified by an "
                    "inplace operation since the forward whose gradient is computed"
                )
        arguments = (ctx.ops, ctx.places, *grads, *ctx.kept)
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated
            return None, None, *_RescaleBackward.apply(*arguments)
        return None, None, *_rescale_backward(*arguments)


class _RescaleBackward(torch.autograd.Function):
    """The gradient of ``_Rescale``, itself differentiable in the incoming gradients and in W.

    With G the gradient of W / sigma, g that of sigma, and sigma = <u v^T, W>, it is

        D = (G - <G, W> / sigma u v^T) / sigma + g u v^T

    and D = G + g u v^T where sigma is zero and W was divided by 1.
    """

    @staticmethod
    def forward(ctx: Any, ops: Operations, places: Any, *tensors: Tensor) -> tuple[Any, ...]:
        ctx.set_materialize_grads(False)
        ctx.places = places
        ctx.save_for_backward(*tensors)
        return tuple(_rescale_backward(ops, places, *tensors))

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor | None) -> Any:
        n = len(ctx.places)
        grads, grad_sigmas, weights, us, vs, _ = _by_kind(ctx.saved_tensors, n)
        result: list[Tensor | None] = [None] * (6 * n)
        for i, grad_out in enumerate(grads_out):
            if grad_out is not None:
                dim = ctx.places[i][1]
                derivatives = _second_derivatives(grad_out, grads[i], weights[i], us[i], vs[i], dim)
                for kind, derivative in zip((0, 1, 2), derivatives, strict=True):
                    if (grads, grad_sigmas, weights)[kind][i] is not None:
                        result[kind * n + i] = derivative
        return None, None, *result


def _rescale_backward(
    ops: Operations, places: Sequence[tuple[MatrixView, int]], *tensors: Any
) -> list[Tensor | None]:
    """The gradient of each weight; None where neither its W / sigma nor its sigma was used."""
    n = len(places)
    used, arguments = [], []
    for i, kinds in enumerate(zip(*_by_kind(tensors, n), strict=True)):
        grad, grad_sigma, weight, u, v, sigma = kinds
        if grad is None and grad_sigma is None:
            continue
        view, dim = places[i]
        grad = torch.zeros_like(weight) if grad is None else like_weight(grad, weight, view, dim)
        used.append(i)
        arguments.append((grad, grad_sigma, weight, view, u, v, sigma))
    result: list[Tensor | None] = [None] * n
    if len(used) == 1:
        result[used[0]] = ops.rescale_backward(*arguments[0])
    elif used:
        for i, grad_weight in zip(used, ops.foreach_rescale_backward(arguments), strict=True):
            result[i] = grad_weight
    return result


def _by_kind(tensors: Sequence[Any], n: int) -> list[Sequence[Any]]:
    return [tensors[start : start + n] for start in range(0, len(tensors), n)]


def _second_derivatives(
    grad_out: Tensor, grad: Tensor | None, weight: Tensor, u: Tensor, v: Tensor, dim: int
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Those of <grad_out, D> by G, g and W.

    In plain torch from W itself, sigma included, so that derivatives of any order are right.
    """
    dtypes = (None if grad is None else grad.dtype, weight.dtype)
    direction = outer(u, v, weight.shape, dim)
    grad_out, weight = grad_out.to(u.dtype), weight.to(u.dtype)
    grad = torch.zeros_like(weight) if grad is None else grad.to(u.dtype)
    sigma = (direction * weight).sum()
    is_zero, sigma = sigma.abs() < torch.finfo(sigma.dtype).tiny, nonzero(sigma)
    along = (direction * grad_out).sum()
    inner = (grad * weight).sum() / sigma
    twice = 2 * along * inner - (grad_out * grad).sum()
    grad_grad = (grad_out - torch.where(is_zero, 0, along) * (weight / sigma)) / sigma
    grad_weight = torch.where(is_zero, 0, (twice * direction - along * grad) / sigma / sigma)
    return grad_grad.to(dtypes[0]), along, grad_weight.to(dtypes[1])
