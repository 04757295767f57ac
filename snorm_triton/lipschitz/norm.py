"""The spectral norm of a convolution, as closely as an iteration finds it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.convolution import Convolution
from ..ops.convolution_geometry import ConvolutionModule
from ..ops.power_iteration import unit
from .weights import read_weight

N_VECTORS = 3  # none of which starts orthogonal to the one sought, and close ones are found apart


def conv_norm(
    conv: ConvolutionModule | nn.Linear,
    input_shape: Sequence[int] | None = None,
    tol: float = 1e-4,
    max_iterations: int = 500,
) -> Tensor:
    r"""The spectral norm of a convolution, of its map from images of one size to images.

    Its padding is part of the map, its bias is not. A few vectors from a random start (the same at
    each call) are improved together, each in the span of all of them, their gradients and their
    last steps (LOBPCG: Knyazev 2001), until the equation ``A^T A v = sigma^2 v`` holds to
    ``tol``. The result is at most the norm, but for rounding: for a bound that holds from above
    there is :func:`conv_norm_bound`. Waits for the device after each iteration.

    Args:
        conv: a Conv1d to Conv3d, a ConvTranspose1d to ConvTranspose3d, or a Linear; a normalized
            weight is taken as evaluation has it, and its own iteration does not go on.
        input_shape: (C, *spatial), without the batch; a Linear needs none.
        tol: the error of the equation over ``sigma^2``; a singular value is that close, and
            mostly far closer. No less than some float32 or float64 rounding is asked for.
        max_iterations: a warning says where they did not get there.

    Returns:
        Shape (), the weight's dtype but at least float32; differentiable in the weight. NaN where
        the weight is not finite.

    Raises:
        TypeError: ``conv`` is neither a convolution nor a Linear.
        ValueError: ``input_shape`` does not fit or is missing, ``tol`` is not positive,
            ``max_iterations`` is below 1, or the weight is complex, sharded or not there yet.

    Example:
        >>> from torch import nn
        >>> from snorm_triton.lipschitz import conv_norm
        >>> conv = nn.Conv2d(1, 1, 3, padding=1)
        >>> _ = nn.init.constant_(conv.weight, 1 / 9)  # a mean
        >>> bool(0.98 < conv_norm(conv, (1, 32, 32)) < 1)  # along the edges it takes in zeros
        True
    """
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    weight = read_weight(conv)
    if isinstance(conv, nn.Linear):
        norm: Tensor = torch.linalg.matrix_norm(weight, 2)
        return norm
    if input_shape is None:
        raise ValueError("input_shape must be given for a convolution: (C, *spatial)")
    linear_map = Convolution.of(conv, input_shape, weight)
    largest = weight.detach().abs().amax()
    if not 0 < largest < float("inf"):
        return weight.sum() * 0  # NaN where it is not finite
    with torch.no_grad():
        scaled = Convolution(weight / largest, linear_map.geometry)
        v = _top(scaled, tol, max_iterations)
        u, v = unit(scaled.forward(v))[0], unit(v)[0]
    return linear_map.inner(u, v)


def _top(linear_map: Convolution, tol: float, max_iterations: int) -> Tensor:
    """The right singular vector of the largest singular value, of the input's shape."""
    weight = linear_map.weight
    tol = max(tol, 20 * torch.finfo(weight.dtype).eps)
    generator = torch.Generator().manual_seed(0)
    n = torch.Size(linear_map.input_shape).numel()
    start = torch.randn(n, min(N_VECTORS, n), generator=generator, dtype=weight.dtype)
    x = torch.linalg.qr(start.to(weight.device)).Q
    basis, k = x, x.shape[1]
    for _ in range(max_iterations):
        images = linear_map.forward(basis.T.unflatten(1, linear_map.input_shape)).flatten(1)
        values, vectors = torch.linalg.eigh(images @ images.T)
        values, vectors = values[-k:].flip(0), vectors[:, -k:].flip(1)
        x = basis @ vectors
        images = (vectors.T @ images).unflatten(1, linear_map.output_shape)
        residual = linear_map.adjoint(images).flatten(1).T - x * values
        error = float(residual[:, 0].norm() / values[0].clamp_min(1e-30))
        if error <= tol:
            break
        step = basis[:, k:] @ vectors[k:]
        basis = torch.linalg.qr(torch.cat([x, residual, step], 1)).Q
    else:
        warnings.warn(
            f"conv_norm: {max_iterations} iterations reached an error of {error:.1e}, not of "
            f"{tol:.1e}: give a larger max_iterations",
            RuntimeWarning,
            stacklevel=3,
        )
    top: Tensor = x[:, 0].reshape(linear_map.input_shape)
    return top
