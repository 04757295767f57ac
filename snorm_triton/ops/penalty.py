"""Half the sum of squared spectral norms as one node of the graph, however many weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .derivatives import outer
from .matrix_view import in_matrix_layout
from .torch_any_device import Matrix, in_dtype_of


class Directions(NamedTuple):
    """The singular vectors that a weight's sigma is taken of, of whatever length, and its dim."""

    u: Tensor
    v: Tensor
    dim: int
    eps: float

    def unit(self) -> tuple[Tensor, Tensor]:
        """As unit vectors."""
        u, v = (F.normalize(x, dim=0, eps=self.eps) for x in (self.u, self.v))
        return u, v


def half_squares(sigmas: Sequence[Tensor]) -> Tensor:
    """Half the sum of their squares, shape ()."""
    return torch.stack([sigma.abs().square() for sigma in sigmas]).sum() / 2


class Penalty(torch.autograd.Function):
    """Real weights -> half the sum of their sigmas' squares; u and v are constant."""

    @staticmethod
    def forward(ctx: Any, directions: Sequence[Directions], *weights: Tensor) -> Tensor:
        ctx.units = [(*each.unit(), each.dim) for each in directions]
        sigmas = []
        for weight, (u, v, dim) in zip(weights, ctx.units, strict=True):
            dense, view = in_matrix_layout(weight.detach(), dim)
            sigmas.append(Matrix(in_dtype_of(dense, u), view).inner(u, v))
        ctx.save_for_backward(*weights, *sigmas)
        return half_squares(sigmas)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        n = len(ctx.units)
        weights, sigmas = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        grads = []
        for weight, sigma, (u, v, dim) in zip(weights, sigmas, ctx.units, strict=True):
            direction = outer(u, v, weight.shape, dim)
            if torch.is_grad_enabled():  # the gradient itself is to be differentiated
                sigma = (direction * in_dtype_of(weight, u)).sum()
            grads.append((grad * sigma * direction).to(weight.dtype))
        return None, *grads
