"""Upper bounds of the norm of a convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..ops.convolution import Convolution
from ..ops.convolution_geometry import ConvolutionModule
from .gram import matrix_bound, symbol_bound
from .grids import Axis, polyphase
from .unfoldings import unfolding_bound
from .weights import read_weight

N_ITERATIONS = 7
Method = Literal["gram", "unfolding"]
METHODS = get_args(Method)


def conv_norm_bound(
    conv: ConvolutionModule | nn.Linear,
    input_shape: Sequence[int] | None = None,
    n_iterations: int = N_ITERATIONS,
    method: Method = "gram",
) -> Tensor:
    r"""No less than the spectral norm of a convolution, of its map from images to images.

    Gram iteration (Delattre et al. 2023, arXiv 2305.16173; 2024, arXiv 2402.00240) on the kernel's
    Fourier transform, at so many frequencies that what lies between them is known to about 1 % in
    each dimension. Strides, dilation and groups are part of it, and a transposed convolution has
    the norm of its adjoint. Padding ``"reflect"`` and ``"replicate"`` are taken as a map of their
    own, whose norm multiplies the rest: a bound as well, by a larger factor. Biases do not count.

    Computed in float64 where the device has it, and rounded up.

    Args:
        conv: a Conv1d to Conv3d, a ConvTranspose1d to ConvTranspose3d, or a Linear; a normalized
            weight is taken as evaluation has it, and nothing iterates.
        input_shape: (C, *spatial), for the bound of one size of image; None for that of any, which
            is the same but for small images, for strides of circular padding, and for
            ``"reflect"`` and ``"replicate"``.
        n_iterations: of the Gram iteration; t leave a factor of at most r^(1/2^(t+1)) at rank r,
            2.5 % for 512 channels at the default.
        method: ``"gram"``, or ``"unfolding"`` (Singla and Feizi 2021, arXiv 1911.10258): the
            smallest norm of the kernel's unfoldings, times the root of the kernel's size; looser,
            and cheaper for many channels.

    Returns:
        Shape (), the weight's dtype but at least float32; differentiable in the weight.

    Raises:
        TypeError: ``conv`` is neither a convolution nor a Linear.
        ValueError: ``input_shape`` does not fit, ``n_iterations`` is negative, ``method`` is none
            of these, or the weight is complex, sharded or not there yet.

    Example:
        >>> from torch import nn
        >>> from snorm_triton.lipschitz import conv_norm, conv_norm_bound
        >>> conv = nn.Conv2d(8, 8, 3, padding=1)
        >>> bound = conv_norm_bound(conv)
        >>> bool(conv_norm(conv, (8, 32, 32)) <= bound)
        True
        >>> bound.backward()  # a penalty
    """
    if n_iterations < 0:
        raise ValueError(f"n_iterations must not be negative, got {n_iterations}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    weight = read_weight(conv)
    if isinstance(conv, nn.Linear):
        return _bound(weight, lambda wide: matrix_bound(wide, n_iterations))
    linear_map = Convolution.of(conv, input_shape or _any_shape(conv), weight)
    axes = _axes(linear_map, input_shape is not None)

    def bound(wide: Tensor) -> Tensor:
        groups = linear_map.geometry.groups
        kernels = polyphase(wide.unflatten(0, (groups, -1)), axes)
        repetition = prod(axis.repetition() for axis in axes)
        if method == "unfolding":
            return unfolding_bound(kernels, n_iterations) * repetition
        grids = [axis.grid() for axis in axes]
        points = tuple(n for n, _ in grids)
        between = prod(loss for _, loss in grids)
        return symbol_bound(kernels, points, n_iterations) * (between * repetition)

    return _bound(linear_map.weight, bound)


def _bound(weight: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """``compute`` of the weight in float64, of a size that leaves no range; rounded up."""
    has_float64 = weight.device.type != "mps"
    wide = weight.double() if has_float64 else weight
    largest = wide.detach().abs().amax()
    largest = torch.where(largest == 0, 1, largest)
    bound = (compute(wide / largest) * largest).to(weight.dtype)
    info = torch.finfo(weight.dtype)
    least = 2 * info.smallest_normal * info.eps  # below the normal numbers no factor rounds up
    return torch.where(bound == 0, bound, bound * (1 + 2 * info.eps) + least)


def _any_shape(conv: ConvolutionModule) -> list[int]:
    """The shape of an input that is large enough."""
    sizes = [2 * d * k + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if not isinstance(conv.padding, str):
        sizes = [n + 2 * p for n, p in zip(sizes, conv.padding, strict=True)]
    return [conv.in_channels, *sizes]


def _axes(linear_map: Convolution, is_sized: bool) -> list[Axis]:
    g = linear_map.geometry
    sizes = linear_map.image if is_sized else (None,) * len(g.stride)
    each = zip(sizes, linear_map.kernel, g.stride, g.dilation, linear_map.padding, strict=True)
    return [Axis(*numbers, g.padding_mode) for numbers in each]
