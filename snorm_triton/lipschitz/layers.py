"""The Lipschitz constants of layers without a weight of their own, in the Euclidean norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, gcd, prod, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sizes = tuple[int, ...]

# The largest slopes of smooth activations, rounded up.
SILU = 1.09984
GELU = 1.12891  # at the root of 2
GELU_TANH = 1.12901
MISH = 1.08851


def _one(module: Any, shape: Sizes) -> float:
    return 1.0


def _gelu(module: Any, shape: Sizes) -> float:
    return GELU if module.approximate == "none" else GELU_TANH


def _softplus(module: Any, shape: Sizes) -> float:
    # Where it goes over to the identity it jumps, below 20 by more than float32 rounds.
    if module.threshold < 20:
        raise ValueError(f"threshold must be at least 20, got {module.threshold}: it jumps there")
    return 1.0


def _dropout(module: Any, shape: Sizes) -> float:
    if module.training and module.p > 0:
        raise ValueError("it drops in training: call eval()")
    return 1.0


def _flatten(module: Any, shape: Sizes) -> float:
    if module.start_dim % (1 + len(shape)) == 0:
        raise ValueError(f"start_dim must leave the batch alone, got {module.start_dim}")
    return 1.0


def _unflatten(module: Any, shape: Sizes) -> float:
    if not isinstance(module.dim, int) or module.dim % (1 + len(shape)) == 0:
        raise ValueError(f"dim must leave the batch alone, got {module.dim}")
    return 1.0


def _celu(module: Any, shape: Sizes) -> float:
    if module.alpha < 0:
        raise ValueError(f"alpha must be positive, got {module.alpha}: its slope has no bound")
    return 1.0


def _max_pool(module: Any, shape: Sizes) -> float:
    """The root of the number of windows that hold a pixel."""
    if module.return_indices:
        raise ValueError("return_indices must be False")
    d = len(shape) - 1
    strides, dilations = _each(module.stride, d), _each(module.dilation, d)
    each = zip(_each(module.kernel_size, d), strides, dilations, strict=True)
    return sqrt(prod(ceil(k / (s // gcd(s, dilation))) for k, s, dilation in each))


def _adaptive_max_pool(module: Any, shape: Sizes) -> float:
    if module.return_indices:
        raise ValueError("return_indices must be False")
    sizes = zip(shape[1:], _each(module.output_size, len(shape) - 1), strict=True)
    return sqrt(prod(_windows(n, n if out is None else out) for n, out in sizes))


def _windows(n: int, out: int) -> int:
    """How many of so many windows over n pixels hold the one that most do."""
    starts = [i * n // out for i in range(out)]
    ends = [-(-(i + 1) * n // out) for i in range(out)]
    counts = [0] * n
    for start, end in zip(starts, ends, strict=True):
        for place in range(start, end):
            counts[place] += 1
    return max(counts)


def _average_pool(module: Any, shape: Sizes) -> float:
    d = len(shape) - 1
    kernels = _each(module.kernel_size, d)
    divisor = getattr(module, "divisor_override", None)
    counts_padding = module.count_include_pad or divisor is not None
    each = zip(shape[1:], kernels, _each(module.stride, d), _each(module.padding, d), strict=True)
    rest = (module.ceil_mode, counts_padding)
    pools = [(n, (k, s, p, *rest)) for n, k, s, p in each]
    factors = [_nonnegative(_average(*options), n) for n, options in pools]
    # Divided by another number than the pixels: those windows at the ends count for too much here.
    return prod(factors) * (prod(kernels) / abs(divisor) if divisor is not None else 1.0)


def _average(*options: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.avg_pool1d(x, *options)


def _adaptive_average_pool(module: Any, shape: Sizes) -> float:
    sizes = zip(shape[1:], _each(module.output_size, len(shape) - 1), strict=True)
    return prod(
        _nonnegative(partial(F.adaptive_avg_pool1d, output_size=n if out is None else out), n)
        for n, out in sizes
    )


def _upsample(module: Any, shape: Sizes) -> float:
    mode = module.mode.replace("bilinear", "linear").replace("trilinear", "linear")
    if mode not in ("nearest", "nearest-exact", "linear"):
        raise ValueError(f"mode must be nearest, nearest-exact or linear, got {module.mode}")
    d = len(shape) - 1
    corners = module.align_corners
    each = zip(shape[1:], _each(module.size, d), _each(module.scale_factor, d), strict=True)
    return prod(
        _nonnegative(
            partial(
                F.interpolate,
                size=size,
                scale_factor=scale,
                mode=mode,
                align_corners=corners,
                recompute_scale_factor=module.recompute_scale_factor,
            ),
            n,
        )
        for n, size, scale in each
    )


def _pad(mode: str) -> Callable[[Any, Sizes], float]:
    def factor(module: Any, shape: Sizes) -> float:
        flat = _each(module.padding, 2 * (len(shape) - 1))
        pairs = [tuple(flat[i : i + 2]) for i in range(0, len(flat), 2)]
        each = zip(reversed(shape[1:]), pairs, strict=True)
        return prod(_nonnegative(partial(F.pad, pad=pair, mode=mode), n) for n, pair in each)

    return factor


def _each(value: Any, count: int) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else [value] * count


def _nonnegative(apply: Callable[[Tensor], Tensor], n: int) -> float:
    """No less than the norm of a linear map without negative entries, of signals (1, 1, n).

    The root of its largest row sum times its largest column sum (Schur's test). A map of an image
    that is a product of such maps, one along each dimension, has the product of their norms.
    """
    with torch.enable_grad():
        ones = torch.ones(1, 1, n, dtype=torch.float64, requires_grad=True)
        row_sums = apply(ones)
        (column_sums,) = torch.autograd.grad(row_sums.sum(), ones)
    return sqrt(float(row_sums.detach().max()) * float(column_sums.max()))


def _names(names: str, factor: Callable[[Any, Sizes], float]) -> dict[Any, Any]:
    return {getattr(nn, name): factor for name in names.split()}


def _dimensions(name: str, factor: Callable[[Any, Sizes], float]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for d in (1, 2, 3):
        found |= _names(f"{name}{d}d", partial(_of_images, factor, d))
    return found


def _of_images(factor: Callable[[Any, Sizes], float], d: int, module: Any, shape: Sizes) -> float:
    """``factor``, for no other number of dimensions, which torch takes to have no batch."""
    if len(shape) != d + 1:
        raise ValueError(f"takes {d + 1} dimensions and the batch, got shape {shape}")
    return factor(module, shape)


FACTORS: dict[type[nn.Module], Callable[[Any, Sizes], float]] = {
    **_names("Identity ReLU Tanh Softsign LogSigmoid Softshrink Tanhshrink Hardtanh", _one),
    **_names("PixelShuffle PixelUnshuffle ChannelShuffle", _one),
    **_names("Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout", _dropout),
    **_dimensions("ZeroPad", _one),
    **_dimensions("ConstantPad", _one),
    **_dimensions("CircularPad", _pad("circular")),
    **_dimensions("ReflectionPad", _pad("reflect")),
    **_dimensions("ReplicationPad", _pad("replicate")),
    **_dimensions("MaxPool", _max_pool),
    **_dimensions("AdaptiveMaxPool", _adaptive_max_pool),
    **_dimensions("AvgPool", _average_pool),
    **_dimensions("AdaptiveAvgPool", _adaptive_average_pool),
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    nn.Upsample: _upsample,
    nn.Softplus: _softplus,
    nn.Sigmoid: lambda module, shape: 1 / 4,
    nn.Hardsigmoid: lambda module, shape: 1 / 6,
    nn.Hardswish: lambda module, shape: 3 / 2,
    nn.LeakyReLU: lambda module, shape: max(1.0, abs(module.negative_slope)),
    nn.RReLU: lambda module, shape: max(1.0, abs(module.lower), abs(module.upper)),
    nn.ELU: lambda module, shape: max(1.0, abs(module.alpha)),
    nn.CELU: _celu,
    nn.SELU: lambda module, shape: 1.7580994,  # of its scale and its alpha
    nn.SiLU: lambda module, shape: SILU,
    nn.GELU: _gelu,
    nn.Mish: lambda module, shape: MISH,
}
"""A bound for a module and the shape (C, ...) of its input; ValueError where there is none."""
