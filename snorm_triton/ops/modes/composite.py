"""torch's own differentiable operations alone: for what takes apart whatever it is given.

That is ``torch.func`` and forward-mode differentiation, which need the derivatives and the batched
form of each, and exporters and tracers, whose programs hold no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...torch_internals import functorch
from ...torch_internals.tracing import constant_while_compiling
from .. import state
from ..calls import Access, Evaluate, Iterate, Normalized, Replay
from ..matrix_view import MatrixView
from ..power_iteration import estimate
from ..rescaling import PLAIN, Rescaling, rescaled
from ..torch_any_device import Matrix, in_dtype_of

R = TypeVar("R")


def normalize(access: Access) -> Normalized:
    """W / sigma, whatever the backend; sigma is differentiable."""
    weight, u, v, dim, step, dtype, _, rescaling = access
    if not isinstance(step, Replay):
        matrix = in_dtype_of(weight, u).movedim(dim, 0).flatten(1).contiguous()
        u, v = without_autocast(weight.device.type, _directions, matrix, u, v, step)
    inputs = weight, u, v, dim, dtype, rescaling
    weight_sn, sigma = without_autocast(weight.device.type, rescale, *inputs)
    return Normalized(weight_sn, u, v, sigma)


def normalize_together(accesses: Sequence[Access]) -> list[Normalized]:
    """:func:`normalize` of each."""
    return [normalize(access) for access in accesses]


def write(accesses: Sequence[Access], outputs: Sequence[Normalized]) -> None:
    """As :func:`snorm_triton.ops.state.write`, past the transforms."""
    state.write(accesses, outputs, state.overwrite)


def rescale(
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    dim: int,
    dtype: torch.dtype,
    rescaling: Rescaling = PLAIN,
) -> tuple[Tensor, Tensor]:
    """``W / sigma`` and ``sigma = u^H W v``, u and v held constant."""
    wide = in_dtype_of(weight, u)
    matrix = wide.movedim(dim, 0).flatten(1).contiguous()  # whatever the layout of the weight
    sigma = torch.vdot(u, torch.mv(matrix, v))
    return rescaled(wide, sigma, rescaling).to(dtype), sigma


def without_autocast(device_type: str, operation: Callable[..., R], *args: Any) -> R:
    """``operation(*args)`` in the dtypes of its arguments, whatever autocast says."""
    if _has_autocast(device_type) and torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):
            return operation(*args)
    return operation(*args)


has_autocast = lru_cache(torch.amp.is_autocast_available)


@constant_while_compiling  # torch 2.11 does not trace what it calls
def _has_autocast(device_type: str) -> bool:
    return has_autocast(device_type)


def _directions(
    matrix: Tensor, u: Tensor, v: Tensor, step: Iterate | Evaluate
) -> tuple[Tensor, Tensor]:
    if functorch.active():
        # Numbers, for a vmap looks for tensors of its own in all else.
        n, eps = (step.n, 0.0) if isinstance(step, Iterate) else (0, step.eps)
        directions: tuple[Tensor, Tensor] = _Directions.apply(matrix, u, v, n, eps)
        return directions
    return _estimate(matrix.detach(), u, v, step)


def _estimate(
    matrix: Tensor, u: Tensor, v: Tensor, step: Iterate | Evaluate
) -> tuple[Tensor, Tensor]:
    return estimate(Matrix(matrix, MatrixView(1, *matrix.shape)), u, v, step)[:2]


class _Directions(torch.autograd.Function):
    """The u and v that an access takes: constants to every transform, however deep."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, u: Tensor, v: Tensor, n: int, eps: float) -> tuple[Tensor, Tensor]:
        return _estimate(matrix, u, v, Iterate(n) if n else Evaluate(eps))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[None, None]:
        return None, None
