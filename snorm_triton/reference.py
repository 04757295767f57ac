"""Spectral and weight normalization as the textbook has them, in float64: the tests' oracle.

Miyato, Kataoka, Koyama, Yoshida: Spectral Normalization for Generative Adversarial Networks
(arXiv 1802.05957), Algorithm 1. Slow, plain and differentiable; nothing here is used in training.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Reference(NamedTuple):
    """The float64 results: the weight's shape, (M,), (N,) and ()."""

    weight_sn: Tensor
    u: Tensor
    v: Tensor
    sigma: Tensor


class ScaledRows(NamedTuple):
    """The float64 results: the weight's shape and (M,)."""

    weight: Tensor
    norms: Tensor


def as_matrix(weight: Tensor, dim: int = 0) -> Tensor:
    """The weight with ``dim`` first and all else flattened: shape (M, N)."""
    return weight.movedim(dim, 0).flatten(1)


def spectral_normalize(
    weight: Tensor, u: Tensor, v: Tensor, *, dim: int = 0, n_power_iterations: int = 1
) -> Reference:
    """W / sigma, sigma = u^T W v after ``n_power_iterations``; after none, of u and v made unit."""
    wide = torch.complex128 if weight.is_complex() else torch.float64
    weight, u, v = weight.to(wide), u.to(wide), v.to(wide)
    matrix = as_matrix(weight, dim)
    with torch.no_grad():
        for _ in range(n_power_iterations):
            u = matrix @ v
            u = u / u.norm()
            v = matrix.mH @ u
            v = v / v.norm()
        u, v = u / u.norm(), v / v.norm()
    sigma = u.conj() @ matrix @ v
    return Reference(weight / sigma, u, v, sigma)


def weight_normalize(weight: Tensor, g: Tensor, *, dim: int = 0) -> ScaledRows:
    """The rows of a weight over their norms, times ``g`` of shape (M,).

    Salimans and Kingma: Weight Normalization (arXiv 1602.07868), equation 2.
    """
    weight, g = weight.double(), g.double()
    norms = as_matrix(weight, dim).norm(dim=1)
    factors = (g / norms).reshape([-1 if axis == dim else 1 for axis in range(weight.ndim)])
    return ScaledRows(weight * factors, norms)


def largest_singular_value(weight: Tensor, dim: int = 0) -> Tensor:
    """The spectral norm of the weight as a matrix, by singular value decomposition; shape ()."""
    norm: Tensor = torch.linalg.matrix_norm(as_matrix(weight.detach(), dim).double(), 2)
    return norm
