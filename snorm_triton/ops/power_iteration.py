"""Algorithm 1 of Miyato et al. (2018, arXiv 1802.05957), over any map that has an adjoint."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import Iterate, Replay, State, Step


class LinearMap(Protocol):
    """W, read as a matrix of shape (M, N): a weight's own, or the sum of what many ranks hold."""

    def matvec(self, v: Tensor) -> Tensor:
        """``W v`` of shape (M,), for ``v`` of shape (N,)."""

    def adjoint(self, u: Tensor) -> Tensor:
        """``W^H u`` of shape (N,), for ``u`` of shape (M,)."""

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """``u^H W v`` of shape ()."""


def estimate(linear_map: LinearMap, u: Tensor, v: Tensor, step: Step) -> State:
    """The u, v and sigma to divide by, all of them fresh; decided on the device."""
    if isinstance(step, Replay):
        return State(u.clone(), v.clone(), step.sigma.clone())
    if isinstance(step, Iterate):
        return _iterate(linear_map, u, v, step.n)
    u, v = F.normalize(u, dim=0, eps=step.eps), F.normalize(v, dim=0, eps=step.eps)
    return State(u, v, linear_map.inner(u, v))


def _iterate(linear_map: LinearMap, u: Tensor, v: Tensor, n: int) -> State:
    sigma = u.new_zeros(())
    for _ in range(n):
        t, length = unit(linear_map.matvec(v))
        t = torch.where(length == 0, start_like(t), t)
        s, sigma = unit(linear_map.adjoint(t))
        good = (sigma > 0) & (sigma < float("inf"))
        u = torch.where(good, t, u)
        v = torch.where(good, s, v)
    return State(u, v, sigma.to(u.dtype))


def start_like(t: Tensor) -> Tensor:
    """A unit vector to go on from in place of ``t = W v`` where that is zero.

    Along 1, 2, 3, ...: neither a constant weight nor a centered one takes it to zero.
    """
    start = torch.arange(1, t.shape[0] + 1, device=t.device, dtype=t.real.dtype).to(t.dtype)
    return start / norm(start).to(t.dtype)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x / |x|`` and ``|x|``; zero stays zero."""
    length = norm(x)
    return x / length.clamp_min(torch.finfo(x.dtype).tiny), length


def norm(x: Tensor) -> Tensor:
    """``|x|`` in float64 where there is one, such that no square leaves the dtype's range."""
    wide = torch.promote_types(x.dtype, torch.float64)
    if wide != x.dtype and x.device.type != "mps":
        length: Tensor = torch.linalg.vector_norm(x, dtype=wide)
        return length
    # Nothing wider is at hand: take the norm over the largest magnitude.
    largest = torch.linalg.vector_norm(x, float("inf")).clamp_min(torch.finfo(x.dtype).tiny)
    length = torch.linalg.vector_norm(x / largest) * largest
    return length
