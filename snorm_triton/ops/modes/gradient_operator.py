"""The gradients of many normalized weights as an operator, itself differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..autograd import rescale_backward
from ..derivatives import second_derivatives
from ..dispatch import place
from ..estimates import Estimate
from ..matrix_view import matrix_view
from ..rescaling import PLAIN, Rescaling
from ..state import BELOW_AUTOGRAD, TAGS

RESCALE_BACKWARD = "snorm_triton::rescale_backward"

torch.library.define(
    RESCALE_BACKWARD,
    "(Tensor[] grads, Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor[] sigmas, "
    "Tensor[] learned, SymInt[] dims, float[] bounds, float[] scales, str backend) -> Tensor[]",
    tags=TAGS,
)


def _rescale_backward(
    grads: list[Tensor],
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: list[Tensor],
    learned: list[Tensor],
    dims: list[int],
    bounds: list[float],
    scales: list[float],
    backend: str,
) -> list[Tensor]:
    places = [
        place(weight.detach(), dim, backend) for weight, dim in zip(weights, dims, strict=True)
    ]
    rescalings = rescalings_of(bounds, scales, learned)
    estimates = [
        Estimate(dense, dense._version, view, dim, u, v, sigma, rescaling, rescaling.version)
        for (_, dense, view), dim, u, v, sigma, rescaling in zip(
            places, dims, us, vs, sigmas, rescalings, strict=True
        )
    ]
    with torch.no_grad():
        gradients = rescale_backward(places[0][0], estimates, grads)
    return [
        each for of_kind in zip(*gradients, strict=True) for each in of_kind if each is not None
    ]


def rescalings_of(
    bounds: list[float], scales: list[float], learned: list[Tensor]
) -> list[Rescaling]:
    """From the lists that an operator takes: the last is empty where no scale is learned."""
    of_scales: Sequence[Tensor | None] = learned or [None] * len(bounds)
    each = map(Rescaling, bounds, scales, of_scales)
    return [PLAIN if rescaling == PLAIN else rescaling for rescaling in each]


def _fake_rescale_backward(
    grads: list[Tensor],
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: list[Tensor],
    learned: list[Tensor],
    dims: list[int],
    bounds: list[float],
    scales: list[float],
    backend: str,
) -> list[Tensor]:
    of_weights = [
        like_dense(weight, dim, weight.dtype) for weight, dim in zip(weights, dims, strict=True)
    ]
    return of_weights + [torch.empty_like(scale) for scale in learned]


torch.library.impl(RESCALE_BACKWARD, BELOW_AUTOGRAD, _rescale_backward)
torch.library.register_fake(RESCALE_BACKWARD, _fake_rescale_backward)


def _setup_rescale_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *lists, ctx.dims, ctx.bounds, ctx.scales, _ = inputs
    ctx.save_for_backward(*(tensor for each in lists for tensor in each))
    ctx.set_materialize_grads(False)


def _second_backward(ctx: Any, grads_out: list[Tensor | None]) -> Any:
    n = len(ctx.dims)
    grads, weights, us, vs, _, learned = (ctx.saved_tensors[k * n : (k + 1) * n] for k in range(6))
    of_weights, of_scales = grads_out[:n], grads_out[n:] or [None] * n
    derivatives = [
        second_derivatives(of, grad, weight, u, v, dim, rescaling)
        for of, grad, weight, u, v, dim, rescaling in zip(
            zip(of_weights, of_scales, strict=True),
            grads,
            weights,
            us,
            vs,
            ctx.dims,
            rescalings_of(ctx.bounds, ctx.scales, learned),
            strict=True,
        )
    ]
    by_grads, by_weights, by_scales = (list(each) for each in zip(*derivatives, strict=True))
    none: list[None] = [None] * n
    by_scales = by_scales if learned else []
    return by_grads, by_weights, none, none, none, by_scales, None, None, None, None


torch.library.register_autograd(
    RESCALE_BACKWARD, _second_backward, setup_context=_setup_rescale_backward
)


def like_dense(weight: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Memory as :func:`place` would lay the weight out."""
    shape, stride = ([int(x) for x in each] for each in (weight.shape, weight.stride()))
    result = weight.new_empty_strided(shape, stride, dtype=dtype)  # a parameter's, never symbolic
    return weight.new_empty(shape, dtype=dtype) if matrix_view(result, dim) is None else result
