"""Gram iteration (Delattre et al. 2023, arXiv 2305.16173): bounds of matrices and of symbols."""

from __future__ import annotations

from itertools import product
from math import pi

import torch
from torch import Tensor

CHUNK = 2**21  # numbers of a batch of matrices: 32 MiB of complex128


def matrix_bound(matrices: Tensor, n_iterations: int) -> Tensor:
    """No less than the largest singular values of ``matrices`` of shape (..., M, N).

    The Frobenius norm of the power 2^t of a Gram matrix is above that of its largest eigenvalue,
    by a factor of at most r^(1/2) at rank r: of r^(1/2^(t+1)), once the root is taken. Each step
    squares the Gram matrix, and divides it by its norm so that nothing overflows.
    """
    smaller_side_last = matrices if matrices.shape[-1] <= matrices.shape[-2] else matrices.mH
    norm = _frobenius(smaller_side_last)
    is_zero = norm == 0
    norm = torch.where(is_zero, 1, norm)
    power = smaller_side_last / norm[..., None, None].to(matrices.dtype)
    # A zero matrix has no logarithm: it is computed as another one, without a gradient.
    power = torch.where(is_zero[..., None, None], torch.ones_like(power), power)
    log_bound = norm.log()
    for step in range(1, n_iterations + 1):
        power = power.mH @ power
        norm = _frobenius(power)
        power = power / norm[..., None, None].to(matrices.dtype)
        log_bound = log_bound + norm.log() / 2**step
    bound: Tensor = torch.where(is_zero, 0, log_bound.exp())
    return bound * (1 + _rounding(matrices))


def symbol_bound(kernels: Tensor, points: tuple[int, ...], n_iterations: int) -> Tensor:
    """No less than the norm of each of ``kernels`` on a torus, the largest of them; shape ().

    On a torus of ``points`` a convolution is block diagonal in the Fourier basis, with a block, its
    symbol, for each frequency. The gradient is that of the largest block.

    Args:
        kernels: shape (groups, O, I, *kernel), float32 or float64.
        points: the sizes of the torus, which may be smaller than the kernel.
        n_iterations: of the Gram iteration.
    """
    device = kernels.device
    taps = torch.tensor(list(product(*map(range, kernels.shape[3:]))), device=device)
    *rest, last = points
    # A real kernel has conjugate symbols at opposite frequencies: half of them are enough.
    sides = [range(n) for n in rest] + [range(last // 2 + 1)]
    frequencies = torch.tensor(list(product(*sides)), device=device)
    groups, o, i = kernels.shape[:3]
    per_frequency = max(groups * max(o * i, min(o, i) ** 2), len(taps))
    with torch.no_grad():
        chunks = frequencies.split(max(1, CHUNK // per_frequency))
        bounds = torch.cat(
            [matrix_bound(_symbols(kernels, taps, each, points), n_iterations) for each in chunks]
        )  # (F, groups)
        largest = bounds.argmax()
    at = frequencies.index_select(0, (largest // groups)[None])
    kernel = kernels.index_select(0, (largest % groups)[None])
    bound: Tensor = matrix_bound(_symbols(kernel, taps, at, points), n_iterations).squeeze()
    # The sums over taps may cancel: what they round counts beside the taps, not beside the sum.
    beside: Tensor = kernels.detach().flatten(3).norm(dim=(1, 2)).sum(1).amax()
    return bound + (16 + taps.shape[0]) * torch.finfo(kernels.dtype).eps * beside


def _symbols(kernels: Tensor, taps: Tensor, frequencies: Tensor, points: tuple[int, ...]) -> Tensor:
    """Shape (F, groups, O, I): each kernel's Fourier transform at each frequency."""
    angles = kernels.new_zeros(len(frequencies), len(taps))
    for axis, n in enumerate(points):
        turns = (frequencies[:, None, axis] * taps[None, :, axis]) % n  # exact, below one turn
        angles = angles - turns.to(kernels.dtype) * (2 * pi / n)
    phases = torch.polar(torch.ones_like(angles), angles)  # (F, taps)
    flat = kernels.flatten(3).flatten(0, 2)  # (groups O I, taps)
    symbols: Tensor = (phases @ flat.T.to(phases.dtype)).unflatten(1, kernels.shape[:3])
    return symbols


def _frobenius(matrices: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    return norms


def _rounding(matrices: Tensor) -> float:
    """What rounding may take off a bound, relatively: each step's counts half of the one before."""
    return 4 * (matrices.shape[-1] + matrices.shape[-2]) * torch.finfo(matrices.dtype).eps
