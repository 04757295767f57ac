"""Normalization inside the transforms of ``torch.func`` and under forward-mode differentiation.

They take apart what they are given into torch's own operations, of which each has its derivatives
and its batched form: so those are what it is computed in here, whatever the backend.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import eager, transforms
from .matrix_view import MatrixView
from .normalization import Request, SpectralNormalized, without_autocast


def normalize(request: Request) -> SpectralNormalized:
    """As :func:`snorm_triton.functional.normalize`, and transformable in the weight.

    A buffer is written unless each sample of a ``vmap`` has a value of its own for a buffer that
    all of them share.
    """
    weight, u, v, dim = request.weight, request.u, request.v, request.dim
    wide = eager.in_dtype_of(weight, u)
    matrix = wide.movedim(dim, 0).flatten(1).contiguous()  # whatever the layout of the weight
    u, v, sigma = without_autocast(
        weight.device.type, _estimate, matrix, u, v, request.n_power_iterations, request.eps
    )
    transforms.write(request.buffers, (u, v, sigma)[3 - len(request.buffers) :])
    weight_sn = (wide / eager.nonzero(sigma)).to(request.dtype)
    return SpectralNormalized(weight_sn, u, v, sigma)


def _estimate(
    matrix: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    u, v = _Directions.apply(matrix, u, v, n_power_iterations, eps)
    return u, v, torch.vdot(u, torch.mv(matrix, v))


class _Directions(torch.autograd.Function):
    """The u and v that an access takes: constants to every transform, however deep."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        matrix: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        view = MatrixView(1, *matrix.shape)
        if n_power_iterations > 0:
            u, v, _ = eager.power_step(matrix, view, u, v, n_power_iterations)
        else:
            u, v, _ = eager.estimate(matrix, view, u, v, eps)
        return u, v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[None, None]:
        return None, None
