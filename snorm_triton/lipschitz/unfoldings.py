"""Bounds by unfoldings of the kernel (Singla, Feizi 2021, arXiv 1911.10258)."""

from __future__ import annotations

from itertools import product
from math import prod, sqrt

import torch
from torch import Tensor

from .gram import matrix_bound


def unfolding_bound(kernels: Tensor, n_iterations: int) -> Tensor:
    """No less than the norm of the convolution with any of ``kernels``, on any image; shape ().

    Each spatial dimension goes with the outputs or with the inputs: the smallest norm of these
    matrices, times the root of the kernel's size. A symbol at a frequency is such a matrix between
    vectors of that length.

    Args:
        kernels: shape (groups, O, I, *kernel).
        n_iterations: of the Gram iteration that bounds the norms of the matrices.
    """
    kernel = kernels.shape[3:]
    axes = range(3, kernels.ndim)
    bounds = []
    for sides in product((False, True), repeat=len(kernel)):
        rows = [axis for axis, with_outputs in zip(axes, sides, strict=True) if with_outputs]
        columns = [axis for axis in axes if axis not in rows]
        unfolded = kernels.permute(0, 1, *rows, 2, *columns)
        unfolded = unfolded.flatten(1, 1 + len(rows)).flatten(2)
        bounds.append(matrix_bound(unfolded, n_iterations))
    bound: Tensor = torch.stack(bounds).amin(0).amax() * sqrt(prod(kernel))
    return bound
