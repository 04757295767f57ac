"""W / sigma as nodes of the autograd graph, for one weight or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import functorch
from ..torch_internals.autograd import EagerFunction, compiled_autograd_key
from .backend import Backend
from .calls import GradientCall
from .estimates import Estimate, Estimates
from .matrix_view import MatrixView, like_weight
from .torch_any_device import in_dtype_of, nonzero

backwards = 0  # through weights that were normalized, so far
BUCKET_BYTES = 25 * 2**20  # of weights; as DistributedDataParallel's buckets of gradients


def differentiable_sigma(sigma: Tensor, weight: Tensor, u: Tensor, v: Tensor, dim: int) -> Tensor:
    """``sigma`` = u^T W v, made differentiable in W, u and v held constant."""
    output: Tensor = _Sigma.apply((sigma, u, v, dim), weight)
    return output


def outer(u: Tensor, v: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """``u v^T`` of shape (M, N) folded into the weight's shape."""
    others = [size for axis, size in enumerate(shape) if axis != dim]
    return torch.outer(u, v).view(shape[dim], *others).movedim(0, dim)


class Rescale(EagerFunction):  # type: ignore[misc]
    """weights -> weights / sigmas, already computed; u and v are constant.

    No transform of ``torch.func`` comes here.
    """

    if compiled_autograd_key is not None:
        _compiled_autograd_key = staticmethod(compiled_autograd_key)

    @staticmethod
    def forward(
        ctx: Any,
        computed: tuple[Backend, Sequence[Estimate], Sequence[Tensor]],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Kept here rather than with save_for_backward: the node serves many layers, and a backward
        # through some of them must leave it whole for the others. It holds no memory but u, v and
        # the copy of a weight that is not dense.
        ctx.backend, ctx.estimates, weights_sn = computed
        ctx.weights = weights
        return tuple(weights_sn)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if len(grads) == 1 and grads[0] is None:
            return None, None
        given = grads if len(grads) == 1 else [grad for grad in grads if grad is not None]
        watched = torch.compiler.is_compiling() or functorch.taken_of(given)
        if len(grads) == 1 and not watched and not torch.is_grad_enabled():
            weight, version, view, dim, u, v, sigma = ctx.estimates[0]
            grad = _laid_out(grads[0], weight, version, view, dim)
            return None, ctx.backend.rescale_backward(grad, weight, view, u, v, sigma)
        used = [i for i, grad in enumerate(grads) if grad is not None]
        if type(ctx.estimates) is Estimates and not watched and not torch.is_grad_enabled():
            return None, *_of_round(ctx.estimates, used, given, len(grads))
        estimates, weights = ([each[i] for i in used] for each in (ctx.estimates, ctx.weights))
        grad_weights: Iterator[Tensor]
        if watched:
            grad_weights = map(_transformed_gradient, given, weights, estimates)
        elif torch.is_grad_enabled():  # the gradient itself is to be differentiated
            grad_weights = iter(_RescaleBackward.apply(ctx.backend, estimates, *given, *weights))
        else:
            grad_weights = iter(rescale_backward(ctx.backend, estimates, given))
        return None, *(None if grad is None else next(grad_weights) for grad in grads)


class _RescaleBackward(torch.autograd.Function):
    """The gradient of ``Rescale``, itself differentiable in the incoming gradient and in W.

    With G the gradient of W / sigma, and sigma = <u v^T, W>, it is

        D = (G - <G, W> / sigma u v^T) / sigma

    and D = G where sigma is zero and W was divided by 1.
    """

    @staticmethod
    def forward(
        ctx: Any, backend: Backend, estimates: Sequence[Estimate], *grads_and_weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.estimates = estimates
        ctx.save_for_backward(*grads_and_weights)
        grad_weights = rescale_backward(backend, estimates, grads_and_weights[: len(estimates)])
        # A view that a node returns could not be changed in place.
        return tuple([grad_weight.detach() for grad_weight in grad_weights])

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor | None) -> Any:
        n = len(grads_out)
        grads, weights = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        result: list[Tensor | None] = [None] * (2 * n)
        for i, (estimate, grad_out) in enumerate(zip(ctx.estimates, grads_out, strict=True)):
            if grad_out is not None:
                derivatives = second_derivatives(
                    grad_out, grads[i], weights[i], estimate.u, estimate.v, estimate.dim
                )
                result[i], result[n + i] = derivatives
        return None, None, *result


def rescale_backward(
    backend: Backend, estimates: Sequence[Estimate], grads: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The gradients of the weights, from those of the normalized weights."""
    calls = []
    for (weight, version, view, dim, u, v, sigma), grad in zip(estimates, grads, strict=True):
        grad = _laid_out(grad, weight, version, view, dim)
        calls.append(GradientCall(grad, weight, view, u, v, sigma))
    return backend.rescale_backward_together(calls)


def _of_round(
    estimates: Estimates, used: Sequence[int], given: Sequence[Tensor], count: int
) -> list[Tensor | None]:
    """The gradients of all ``count`` weights of a node: of those that are used."""
    laid_out = [
        _laid_out(grad, *estimates.laid_out(i)) for i, grad in zip(used, given, strict=True)
    ]
    result: list[Tensor | None] = [None] * count
    for i, grad_weight in zip(used, estimates.gradients(used, laid_out), strict=True):
        result[i] = grad_weight
    return result


def _laid_out(grad: Tensor, weight: Tensor, version: int, view: MatrixView, dim: int) -> Tensor:
    """``grad`` as the weight lies, which is what it was in the forward."""
    global backwards
    backwards += 1
    if weight._version != version:
        raise modified(weight)
    if grad.stride() == weight.stride() and grad.layout == torch.strided and not grad.is_neg():
        return grad
    return like_weight(grad, weight, view, dim)


def _transformed_gradient(grad: Tensor, weight: Tensor, estimate: Estimate) -> Tensor:
    _, version, _, dim, u, v, _ = estimate
    if not torch.compiler.is_compiling() and weight._version != version:
        raise modified(weight)
    return gradient_in_torch(grad, weight, u, v, dim)


def gradient_in_torch(
    grad: Tensor,
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    dim: int,
    sum_over_shards: Callable[[Tensor], Tensor] = lambda whole: whole,
) -> Tensor:
    """The gradient of a weight, differentiable in ``grad`` and ``weight``.

    In torch's own operations, which any transform takes.
    """
    wide, wide_grad = in_dtype_of(weight, u), in_dtype_of(grad, u)
    direction = outer(u, v, weight.shape, dim)
    sigma = sum_over_shards((direction * wide).sum())
    inner = sum_over_shards((wide_grad * wide).sum())
    divisor = nonzero(sigma)
    along = torch.where(sigma == divisor, inner / divisor, 0)
    return ((wide_grad - along * direction) / divisor).to(weight.dtype)


def modified(weight: Tensor) -> RuntimeError:
    """What to raise where a gradient is to be computed of another weight than the forward's."""
    return RuntimeError(
        f"a normalized weight of shape {tuple(weight.shape)} has been modified by an inplace "
        "operation since the forward whose gradient is computed"
    )


class _Sigma(torch.autograd.Function):
    """weight -> sigma = u^T W v, already computed."""

    @staticmethod
    def forward(ctx: Any, computed: tuple[Tensor, Tensor, Tensor, int], weight: Tensor) -> Tensor:
        sigma, *ctx.direction = computed
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return sigma.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, v, dim = ctx.direction
        return None, (grad * outer(u, v, ctx.shape, dim)).to(ctx.dtype)


def buckets(sizes: Sequence[int]) -> Iterator[slice]:
    """Neighbors of up to ``BUCKET_BYTES`` together: the first gradient need not wait for all."""
    start, filled = 0, 0
    for end, size in enumerate(sizes):
        if filled and filled + size > BUCKET_BYTES:
            yield slice(start, end)
            start, filled = end, 0
        filled += size
    if sizes:
        yield slice(start, len(sizes))


def second_derivatives(
    grad_out: Tensor, grad: Tensor, weight: Tensor, u: Tensor, v: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Those of <grad_out, D> by G and W.

    In plain torch from W itself, sigma included, so that derivatives of any order are right.
    """
    dtypes = grad.dtype, weight.dtype
    direction = outer(u, v, weight.shape, dim)
    grad_out, grad, weight = grad_out.to(u.dtype), grad.to(u.dtype), weight.to(u.dtype)
    sigma = (direction * weight).sum()
    is_zero, sigma = sigma.abs() < torch.finfo(sigma.dtype).tiny, nonzero(sigma)
    along = torch.where(is_zero, 0, (direction * grad_out).sum())
    inner = (grad * weight).sum() / sigma
    twice = 2 * along * inner - (grad_out * grad).sum()
    grad_grad = (grad_out - along * (weight / sigma)) / sigma
    grad_weight = torch.where(is_zero, 0, (twice * direction - along * grad) / sigma / sigma)
    return grad_grad.to(dtypes[0]), grad_weight.to(dtypes[1])
