"""The norm of a convolution itself: its map takes images to images, and is no matrix.

An access in torch's own operations, whatever runs them: a power iteration is a convolution and its
adjoint, and the gradient of sigma is the convolution's weight gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...torch_internals import functorch
from ...torch_internals.tracing import is_exporting
from ..calls import Access, Evaluate, Iterate, Normalized, Replay
from ..convolution import Convolution
from ..convolution_geometry import Geometry
from ..convolution_iteration import estimate_of_convolution
from ..rescaling import rescaled
from ..torch_any_device import in_dtype_of
from . import compiled, composite, convolution_operator
from .composite import without_autocast


class OfConvolution:
    """As a :class:`snorm_triton.ops.modes.Mode`, of convolutions of one geometry.

    u has the shape of an output and v that of an input, without the batch.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def normalize(self, access: Access) -> Normalized:
        """W / sigma, and the u, v and sigma it took; sigma is differentiable."""
        return without_autocast(access.weight.device.type, _normalize, self.geometry, access)

    def normalize_together(self, accesses: Sequence[Access]) -> list[Normalized]:
        """:func:`normalize` of each."""
        return [self.normalize(access) for access in accesses]

    def write(self, accesses: Sequence[Access], outputs: Sequence[Normalized]) -> None:
        """As :func:`snorm_triton.ops.state.write`, past the transforms."""
        mode: Any = compiled if torch.compiler.is_compiling() else composite
        mode.write(accesses, outputs)


def _normalize(geometry: Geometry, access: Access) -> Normalized:
    weight, u, v, _, step, dtype, _, rescaling = access
    wide = in_dtype_of(weight, u)
    if isinstance(step, Replay):
        u, v = u.clone(), v.clone()
    elif functorch.active():
        # Numbers, for a vmap looks for tensors of its own in all else.
        n, eps = (step.n, 0.0) if isinstance(step, Iterate) else (0, step.eps)
        u, v = _Directions.apply(wide, u, v, n, eps, geometry)
    elif torch.compiler.is_compiling() and not is_exporting():
        u, v, _ = convolution_operator.iterate(geometry, wide.detach(), u, v, step)
    else:
        u, v, _ = estimate_of_convolution(geometry, wide.detach(), u, v, step)
    sigma = Convolution(wide, geometry).inner(u, v)
    return Normalized(rescaled(wide, sigma, rescaling).to(dtype), u, v, sigma)


class _Directions(torch.autograd.Function):
    """The u and v that an access takes: constants to every transform, however deep."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor, u: Tensor, v: Tensor, n: int, eps: float, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        step = Iterate(n) if n else Evaluate(eps)
        return estimate_of_convolution(geometry, weight, u, v, step)[:2]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * 6

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[None, None]:
        return None, None
