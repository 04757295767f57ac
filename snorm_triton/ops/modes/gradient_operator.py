"""The gradients of many normalized weights as an operator, itself differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd import rescale_backward, second_derivatives
from ..dispatch import place
from ..estimates import Estimate
from ..matrix_view import matrix_view
from ..state import BELOW_AUTOGRAD, TAGS

RESCALE_BACKWARD = "snorm_triton::rescale_backward"

torch.library.define(
    RESCALE_BACKWARD,
    "(Tensor[] grads, Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor[] sigmas, SymInt[] dims, "
    "str backend) -> Tensor[]",
    tags=TAGS,
)


def _rescale_backward(
    grads: list[Tensor],
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: list[Tensor],
    dims: list[int],
    backend: str,
) -> list[Tensor]:
    places = [
        place(weight.detach(), dim, backend) for weight, dim in zip(weights, dims, strict=True)
    ]
    estimates = [
        Estimate(dense, dense._version, view, dim, u, v, sigma)
        for (_, dense, view), dim, u, v, sigma in zip(places, dims, us, vs, sigmas, strict=True)
    ]
    with torch.no_grad():
        return list(rescale_backward(places[0][0], estimates, grads))


def _fake_rescale_backward(
    grads: list[Tensor],
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: list[Tensor],
    dims: list[int],
    backend: str,
) -> list[Tensor]:
    return [
        like_dense(weight, dim, weight.dtype) for weight, dim in zip(weights, dims, strict=True)
    ]


torch.library.impl(RESCALE_BACKWARD, BELOW_AUTOGRAD, _rescale_backward)
torch.library.register_fake(RESCALE_BACKWARD, _fake_rescale_backward)


def _setup_rescale_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *lists, ctx.dims, _ = inputs
    ctx.save_for_backward(*(tensor for each in lists for tensor in each))
    ctx.set_materialize_grads(False)


def _second_backward(ctx: Any, grads_out: list[Tensor | None]) -> Any:
    n = len(ctx.dims)
    grads, weights, us, vs, _ = (ctx.saved_tensors[k * n : (k + 1) * n] for k in range(5))
    grad_grads: list[Tensor | None] = [None] * n
    grad_weights: list[Tensor | None] = [None] * n
    for i, grad_out in enumerate(grads_out):
        if grad_out is not None:
            grad_grads[i], grad_weights[i] = second_derivatives(
                grad_out, grads[i], weights[i], us[i], vs[i], ctx.dims[i]
            )
    return grad_grads, grad_weights, [None] * n, [None] * n, [None] * n, None, None


torch.library.register_autograd(
    RESCALE_BACKWARD, _second_backward, setup_context=_setup_rescale_backward
)


def like_dense(weight: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Memory as :func:`place` would lay the weight out."""
    shape, stride = ([int(x) for x in each] for each in (weight.shape, weight.stride()))
    result = weight.new_empty_strided(shape, stride, dtype=dtype)  # a parameter's, never symbolic
    return weight.new_empty(shape, dtype=dtype) if matrix_view(result, dim) is None else result
