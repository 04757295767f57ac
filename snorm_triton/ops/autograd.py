"""W / sigma as nodes of the autograd graph, for one weight or many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import functorch
from ..torch_internals.autograd import EagerFunction, compiled_autograd_key
from .backend import Backend
from .calls import GradientCall, Gradients
from .derivatives import Pair, gradient_in_torch, outer, second_derivatives
from .estimates import Estimate, Estimates, modified
from .matrix_view import MatrixView, like_weight

backwards = 0  # through weights that were normalized, so far
BUCKET_BYTES = 25 * 2**20  # of weights; as DistributedDataParallel's buckets of gradients


def differentiable_sigma(sigma: Tensor, weight: Tensor, u: Tensor, v: Tensor, dim: int) -> Tensor:
    """``sigma`` = u^T W v, made differentiable in W, u and v held constant."""
    output: Tensor = _Sigma.apply((sigma, u, v, dim), weight)
    return output


class Rescale(EagerFunction):  # type: ignore[misc]
    """weights -> weights / sigmas, already computed; u and v are constant.

    After the weights come the scales of those that learn one. No transform of ``torch.func`` comes
    here.
    """

    if compiled_autograd_key is not None:
        _compiled_autograd_key = staticmethod(compiled_autograd_key)

    @staticmethod
    def forward(
        ctx: Any,
        computed: tuple[Backend, Sequence[Estimate], Sequence[Tensor]],
        *weights_and_scales: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Kept here rather than with save_for_backward: the node serves many layers, and a backward
        # through some of them must leave it whole for the others. It holds no memory but u, v and
        # the copy of a weight that is not dense.
        ctx.backend, ctx.estimates, weights_sn = computed
        ctx.inputs = weights_and_scales
        return tuple(weights_sn)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if len(grads) == 1 and grads[0] is None:
            return None, *(None for _ in ctx.inputs)
        given = grads if len(grads) == 1 else [grad for grad in grads if grad is not None]
        watched = torch.compiler.is_compiling() or functorch.taken_of(given)
        if len(grads) == 1 and not watched and not torch.is_grad_enabled():
            gradient, of_scale = ctx.backend.rescale_backward(*_taken(ctx.estimates[0], grads[0]))
            return (None, gradient) if len(ctx.inputs) == 1 else (None, gradient, of_scale)
        used = [i for i, grad in enumerate(grads) if grad is not None]
        if type(ctx.estimates) is Estimates and not watched and not torch.is_grad_enabled():
            return None, *_of_round(ctx.estimates, used, given, len(grads))
        estimates, weights = ([each[i] for i in used] for each in (ctx.estimates, ctx.inputs))
        of_used: Iterable[Pair]
        if watched:
            of_used = map(_transformed_gradient, given, weights, estimates)
        elif torch.is_grad_enabled():  # the gradient itself is to be differentiated
            inputs = (*given, *weights, *scales_of(estimates))
            flat = _RescaleBackward.apply(ctx.backend, estimates, *inputs)
            of_used = _in_order(estimates, flat)
        else:
            of_used = rescale_backward(ctx.backend, estimates, given)
        of_all: list[Pair] = [(None, None)] * len(grads)
        for i, gradients in zip(used, of_used, strict=True):
            of_all[i] = gradients
        return None, *_flat(ctx.estimates, of_all)


class _RescaleBackward(torch.autograd.Function):
    """The gradients of ``Rescale``, differentiable in the incoming gradients and in its inputs."""

    @staticmethod
    def forward(
        ctx: Any, backend: Backend, estimates: Sequence[Estimate], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.estimates = estimates
        ctx.save_for_backward(*inputs)
        gradients = rescale_backward(backend, estimates, inputs[: len(estimates)])
        # A view that a node returns could not be changed in place.
        flat = _flat(estimates, gradients)
        return tuple([each.detach() for each in flat if each is not None])

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor | None) -> Any:
        n, estimates = len(ctx.estimates), ctx.estimates
        grads, weights, scales = (ctx.saved_tensors[k * n : (k + 1) * n] for k in range(3))
        given_scales = iter(scales)
        by_grads: list[Tensor | None] = []
        by_inputs: list[Pair] = []
        for i, (estimate, of_one) in enumerate(
            zip(estimates, _in_order(estimates, grads_out), strict=True)
        ):
            _, _, _, dim, u, v, _, rescaling, _ = estimate
            if rescaling.learned is not None:
                rescaling = rescaling._replace(learned=next(given_scales))
            taken = grads[i], weights[i], u, v, dim, rescaling
            by_grad, *by_input = second_derivatives(of_one, *taken)
            by_grads.append(by_grad)
            by_inputs.append((by_input[0], by_input[1]))
        return None, None, *by_grads, *_flat(estimates, by_inputs)


def scales_of(estimates: Sequence[Estimate]) -> list[Tensor]:
    """Those that are learned."""
    scales = [estimate.rescaling.learned for estimate in estimates]
    return [scale for scale in scales if scale is not None]


def _flat(estimates: Sequence[Estimate], pairs: Sequence[Pair]) -> list[Tensor | None]:
    """What is of the weights, then what is of the scales that are learned."""
    of_scales = [
        of_scale
        for estimate, (_, of_scale) in zip(estimates, pairs, strict=True)
        if estimate.rescaling.learned is not None
    ]
    return [*(of_weight for of_weight, _ in pairs), *of_scales]


def _in_order(estimates: Sequence[Estimate], flat: Sequence[Tensor | None]) -> list[Pair]:
    """The inverse of :func:`_flat`."""
    of_scales = iter(flat[len(estimates) :])
    return [
        (of_weight, None if estimate.rescaling.learned is None else next(of_scales))
        for estimate, of_weight in zip(estimates, flat, strict=False)
    ]


def rescale_backward(
    backend: Backend, estimates: Sequence[Estimate], grads: Sequence[Tensor]
) -> Sequence[Gradients]:
    """The gradients of the weights and scales, from those of the normalized weights."""
    return backend.rescale_backward_together(list(map(_call, estimates, grads)))


def _of_round(
    estimates: Estimates, used: Sequence[int], given: Sequence[Tensor], count: int
) -> list[Tensor | None]:
    """The gradients of all ``count`` weights of a node: of those that are used."""
    laid_out = []
    for i, grad in zip(used, given, strict=True):
        weight, version, view, dim = estimates.placed(i)
        if weight._version != version:
            raise modified(weight)
        laid_out.append(_laid_out(grad, weight, view, dim))
    result: list[Tensor | None] = [None] * count
    for i, grad_weight in zip(used, estimates.gradients(used, laid_out), strict=True):
        result[i] = grad_weight
    return result


def _call(estimate: Estimate, grad: Tensor) -> GradientCall:
    return GradientCall(*_taken(estimate, grad))


def _taken(estimate: Estimate, grad: Tensor) -> tuple[Any, ...]:
    """What a backend is asked for: the gradient, and what the forward took."""
    weight, version, view, dim, u, v, sigma, rescaling, _ = estimate
    if weight._version != version or rescaling.learned is not None:
        estimate.check_versions()
    return _laid_out(grad, weight, view, dim), weight, view, u, v, sigma, rescaling


def _laid_out(grad: Tensor, weight: Tensor, view: MatrixView, dim: int) -> Tensor:
    """``grad`` as the weight lies, which is what it was in the forward."""
    global backwards
    backwards += 1
    if grad.stride() == weight.stride() and grad.layout == torch.strided and not grad.is_neg():
        return grad
    return like_weight(grad, weight, view, dim)


def _transformed_gradient(grad: Tensor, weight: Tensor, estimate: Estimate) -> Gradients:
    if not torch.compiler.is_compiling():
        estimate.check_versions()
    _, _, _, dim, u, v, _, rescaling, _ = estimate
    return gradient_in_torch(grad, weight, u, v, dim, rescaling)


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
