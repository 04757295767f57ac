"""The operations in plain torch: every device, every floating or complex dtype.

Every function takes a dense weight with its :class:`MatrixView`, ``u`` of shape (M,), ``v`` of
shape (N,) in logical column order, and ``sigma`` of shape (); it writes no argument and never
synchronises with the host. ``kernels/`` holds the same operations in Triton.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .matrix_view import MatrixView


def power_step(
    weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, n_power_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``n_power_iterations`` of Algorithm 1 of Miyato et al. (2018): u, v and sigma, all fresh.

    A step whose sigma is zero or not finite leaves u and v as they were; its sigma says which it
    was.
    """
    weight = _in_dtype_of(weight, u)
    v = view.columns_to_memory(v)
    sigma = u.new_zeros(())
    for _ in range(n_power_iterations):
        t, _ = _normalize(_matvec(weight, view, v))
        s, sigma = _normalize(_matvec_transposed(weight, view, t))
        good = (sigma > 0) & (sigma < float("inf"))
        u = torch.where(good, t, u)
        v = torch.where(good, s, v)
    return u, view.columns_to_logical(v), sigma.to(u.dtype)


def estimate(
    weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``u / |u|``, ``v / |v|`` and sigma = u^T W v of these: right for averaged u and v too."""
    u, v = F.normalize(u, dim=0, eps=eps), F.normalize(v, dim=0, eps=eps)
    t = _matvec(_in_dtype_of(weight, u), view, view.columns_to_memory(v))
    return u, v, torch.vdot(u, t)


def rescale(weight: Tensor, sigma: Tensor) -> Tensor:
    """``weight / sigma`` in the weight's dtype and layout; divided by 1 where sigma is zero."""
    return (_in_dtype_of(weight, sigma) / nonzero(sigma)).to(weight.dtype)


def rescale_backward(
    grad: Tensor,
    grad_sigma: Tensor | None,
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
) -> Tensor:
    """``(grad - <grad, W_sn> u v^T) / sigma + grad_sigma u v^T``, for a real weight.

    ``grad`` is laid out in memory as the weight; ``grad_sigma`` has shape () or is absent.
    """
    divisor = nonzero(sigma)
    wide_grad = _in_dtype_of(grad, u)
    inner = torch.dot(view.flat(_in_dtype_of(weight, u)), view.flat(wide_grad))
    # A weight whose sigma is zero was divided by 1, whatever it is.
    coefficient = torch.where(sigma == divisor, -(inner / divisor) / divisor, 0)
    if grad_sigma is not None:
        coefficient = coefficient + grad_sigma
    grad_weight = wide_grad / divisor
    _add_outer_(grad_weight, view, coefficient * u, view.columns_to_memory(v))
    return grad_weight.to(weight.dtype)


def nonzero(sigma: Tensor) -> Tensor:
    """``sigma``, and 1 where it is zero (below the smallest normal number), so that 0 / 0 is 0."""
    return torch.where(sigma.abs() < torch.finfo(sigma.dtype).tiny, 1, sigma)


def _in_dtype_of(tensor: Tensor, state: Tensor) -> Tensor:
    """Half precision is computed in the dtype of u, v and sigma: float32 or more."""
    return tensor if tensor.dtype == state.dtype else tensor.to(state.dtype)


def _normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x / |x|`` and ``|x|``, such that no square leaves the dtype's range; zero stays zero."""
    tiny = torch.finfo(x.dtype).tiny
    wide = torch.promote_types(x.dtype, torch.float64)
    if wide != x.dtype and x.device.type != "mps":
        norm = torch.linalg.vector_norm(x, dtype=wide)
        return x / norm.clamp_min(tiny), norm
    # Nothing wider is at hand: take the norm over the largest magnitude.
    largest = torch.linalg.vector_norm(x, float("inf")).clamp_min(tiny)
    x = x / largest
    norm = torch.linalg.vector_norm(x)
    return x / norm.clamp_min(tiny), norm * largest


def _matvec(weight: Tensor, view: MatrixView, v: Tensor) -> Tensor:
    """``W v`` of shape (M,), for ``v`` of shape (N,) in memory column order."""
    matrix = view.matrix(weight)
    if matrix is not None:
        return torch.mv(matrix, v)
    return torch.bmm(view.blocks(weight), v.view(view.P, view.Q, 1)).sum(0).squeeze(1)


def _matvec_transposed(weight: Tensor, view: MatrixView, u: Tensor) -> Tensor:
    """``W^H u`` of shape (N,) in memory column order, for ``u`` of shape (M,)."""
    matrix = view.matrix(weight)
    if matrix is not None:
        return torch.mv(matrix.mH, u)
    rows = u.conj().expand(view.P, 1, view.M)
    return torch.bmm(rows, view.blocks(weight)).view(-1).conj()


def _add_outer_(tensor: Tensor, view: MatrixView, a: Tensor, b: Tensor) -> None:
    """Add ``a b^T`` in place: ``a`` of shape (M,), ``b`` of shape (N,) in memory column order."""
    matrix = view.matrix(tensor)
    if matrix is not None:
        matrix.addr_(a, b)
    else:
        column = a.view(1, view.M, 1).expand(view.P, view.M, 1)
        view.blocks(tensor).baddbmm_(column, b.view(view.P, 1, view.Q))
