"""The operations in plain torch: every device, every floating or complex dtype.

Every function takes a dense weight with its :class:`MatrixView`, ``u`` of shape (M,), ``v`` of
shape (N,) in logical column order, and ``sigma`` of shape (); it never synchronises with the host.
``kernels/`` holds the same operations in Triton, ``host.py`` for plain CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .matrix_view import MatrixView


def normalize(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    n_power_iterations: int,
    eps: float,
    dtype: torch.dtype,
    buffers: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``weight / sigma`` in ``dtype`` and the weight's layout, and the u, v and sigma it took.

    Those of :func:`power_step`, or without iterations of :func:`estimate`; all of them fresh.
    ``buffers`` are overwritten: none, or those of u, v and sigma where it iterates.
    """
    if n_power_iterations > 0:
        u, v, sigma = power_step(weight, view, u, v, n_power_iterations)
    else:
        u, v, sigma = estimate(weight, view, u, v, eps)
    if buffers:
        sigma_written = sigma.abs() if sigma.is_complex() else sigma
        torch._foreach_copy_(list(buffers), [u, v, sigma_written])
    return rescale(weight, sigma, dtype), u, v, sigma


def power_step(
    weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, n_power_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``n_power_iterations`` of Algorithm 1 of Miyato et al. (2018): u, v and sigma, all fresh.

    A step whose sigma is zero or not finite leaves u and v as they were; its sigma says which it
    was.
    """
    operand = view.operand(in_dtype_of(weight, u))
    v = view.columns_to_memory(v)
    sigma = u.new_zeros(())
    for _ in range(n_power_iterations):
        t, _ = unit(matvec(operand, v))
        s, sigma = unit(matvec_adjoint(operand, t))
        good = (sigma > 0) & (sigma < float("inf"))
        u = torch.where(good, t, u)
        v = torch.where(good, s, v)
    return u, view.columns_to_logical(v), sigma.to(u.dtype)


def estimate(
    weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``u / |u|``, ``v / |v|`` and sigma = u^T W v of these: right for averaged u and v too."""
    u, v = F.normalize(u, dim=0, eps=eps), F.normalize(v, dim=0, eps=eps)
    t = matvec(view.operand(in_dtype_of(weight, u)), view.columns_to_memory(v))
    return u, v, torch.vdot(u, t)


def rescale(weight: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight / sigma`` in ``dtype`` and the weight's layout; divided by 1 where sigma is zero."""
    return (in_dtype_of(weight, sigma) / nonzero(sigma)).to(dtype)


def replay(
    weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, sigma: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`rescale`, and copies of u, v and sigma, which a later iteration may overwrite."""
    return rescale(weight, sigma, dtype), u.clone(), v.clone(), sigma.clone()


def rescale_backward(
    grad: Tensor,
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
    sum_over_shards: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``(grad - <grad, W_sn> u v^T) / sigma``, for a real weight.

    ``grad`` is laid out in memory as the weight. Where these are a shard, ``sum_over_shards`` adds
    up the inner product.
    """
    divisor = nonzero(sigma)
    wide_grad = in_dtype_of(grad, u)
    inner = torch.dot(view.flat(in_dtype_of(weight, u)), view.flat(wide_grad))
    if sum_over_shards is not None:
        inner = sum_over_shards(inner)
    # A weight whose sigma is zero was divided by 1, whatever it is.
    coefficient = torch.where(sigma == divisor, -(inner / divisor) / divisor, 0)
    grad_weight = wide_grad / divisor
    _add_outer_(view.operand(grad_weight), coefficient * u, view.columns_to_memory(v))
    return grad_weight.to(weight.dtype)


def nonzero(sigma: Tensor) -> Tensor:
    """``sigma``, and 1 where it is zero (below the smallest normal number), so that 0 / 0 is 0."""
    return torch.where(sigma.abs() < torch.finfo(sigma.dtype).tiny, 1, sigma)


def in_dtype_of(tensor: Tensor, state: Tensor) -> Tensor:
    """Half precision is computed in the dtype of u, v and sigma: float32 or more."""
    return tensor if tensor.dtype == state.dtype else tensor.to(state.dtype)


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


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x / |x|`` and ``|x|``; zero stays zero."""
    length = norm(x)
    return x / length.clamp_min(torch.finfo(x.dtype).tiny), length


def matvec(operand: Tensor, v: Tensor) -> Tensor:
    """``W v`` of shape (M,), for ``v`` of shape (N,) in memory column order."""
    if operand.ndim == 2:
        return torch.mv(operand, v)
    P, _, Q = operand.shape
    t: Tensor = torch.bmm(operand, v.view(P, Q, 1)).sum(0).squeeze(1)
    return t


def matvec_adjoint(operand: Tensor, u: Tensor) -> Tensor:
    """``W^H u`` of shape (N,) in memory column order, for ``u`` of shape (M,)."""
    if operand.is_complex():
        # Conjugated in memory: what torch.compile calls an operator from loses sight of a lazy one.
        return matvec_transposed(operand, u.conj_physical()).conj_physical()
    return matvec_transposed(operand, u)


def matvec_transposed(operand: Tensor, u: Tensor) -> Tensor:
    """``W^T u`` of shape (N,) in memory column order, for ``u`` of shape (M,)."""
    if operand.ndim == 2:
        return torch.mv(operand.mT, u)
    P, M, _ = operand.shape
    return torch.bmm(u.expand(P, 1, M), operand).view(-1)


def _add_outer_(operand: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a b^T`` in place: ``a`` of shape (M,), ``b`` of shape (N,) in memory column order."""
    if operand.ndim == 2:
        operand.addr_(a, b)
    else:
        P, M, Q = operand.shape
        operand.baddbmm_(a.view(1, M, 1).expand(P, M, 1), b.view(P, 1, Q))
