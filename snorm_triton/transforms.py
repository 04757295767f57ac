"""Normalization inside the transforms of ``torch.func`` and under forward-mode differentiation.

They take apart what they are given into torch's own operations, of which each has its derivatives
and its batched form: so those are what it is computed in here, whatever the backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from . import eager
from .matrix_view import MatrixView
from .normalization import Request, SpectralNormalized, without_autocast


def active() -> bool:
    """Whether a transform is being taken, or a forward derivative."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


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
    write(request.buffers, (u, v, sigma)[3 - len(request.buffers) :])
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


def write(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value to its buffer, past the transforms, where they leave it one value."""
    for buffer, value in zip(buffers, values, strict=True):
        value = value.abs() if value.is_complex() and not buffer.is_complex() else value
        place, place_levels = _memory_of(buffer)
        fresh, fresh_levels = _memory_of(value)
        if not set(fresh_levels) <= set(place_levels):
            continue
        with torch._C._DisableFuncTorch(), torch.no_grad():
            for axis, level in enumerate(place_levels):
                if level not in fresh_levels:
                    fresh = fresh.unsqueeze(axis)
            place.copy_(fresh)


def plain(tensor: Tensor) -> Tensor:
    """The tensor below all transforms, of the samples of every ``vmap`` together."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def _memory_of(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """As :func:`plain`, with the axes of every ``vmap`` in front, and their levels."""
    batched = []
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            level, axis = _functorch.maybe_get_level(tensor), _functorch.maybe_get_bdim(tensor)
            batched.append((level, axis))
        tensor = _functorch.get_unwrapped(tensor)
    axes = list(range(tensor.ndim))
    leading = [axes.pop(axis) for _, axis in reversed(batched)]
    with torch._C._DisableFuncTorch(), torch.no_grad():
        return tensor.permute(leading + axes), [level for level, _ in reversed(batched)]
