"""Spectral normalization as a pure, twice differentiable function of the weight."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import Operations, operations, select
from .eager import nonzero
from .matrix_view import MatrixView, in_matrix_layout, like_weight

__all__ = ["SpectralNormalized", "l2_normalize", "spectral_normalize"]


class SpectralNormalized(NamedTuple):
    """What :func:`spectral_normalize` returns; ``weight_sn`` and ``sigma`` are differentiable."""

    weight_sn: Tensor
    u: Tensor
    v: Tensor
    sigma: Tensor


def spectral_normalize(
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    dim: int = 0,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    backend: str = "auto",
) -> SpectralNormalized:
    r"""Divide ``weight`` by its largest singular value, estimated by warm-started power iteration.

    Each iteration takes :math:`u \leftarrow W v / |W v|` and then
    :math:`v \leftarrow W^T u / |W^T u|`; the last gives :math:`\sigma = u^T W v`. The gradient
    holds u and v constant, as Miyato et al. (2018, arXiv 1802.05957, section 2.1) do. Writes no
    argument.

    Args:
        weight: at least 2-D, floating or complex, of shape S; read as the matrix of shape (M, N)
            with M = S[dim] and N the product of the other sizes, in order.
        u: shape (M,), the weight's dtype but at least float32.
        v: shape (N,), the dtype of ``u``.
        dim: the dimension of the outputs.
        n_power_iterations: iterations to run; 0 takes u and v as given, of whatever length.
        eps: lower bound of \|u\| and \|v\| in the division by them without iterations.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``, see :func:`snorm_triton.dispatch.select`.

    Returns:
        ``weight_sn`` (shape S, the weight's dtype and layout), the new ``u`` and ``v``, and
        ``sigma`` (shape (), the dtype of ``u``). A zero weight gives a zero ``weight_sn``,
        ``sigma`` 0 and the gradient of ``weight_sn`` as that of the weight; a non-finite one shows
        in ``weight_sn`` and ``sigma``; both return u and v as they came. A weight that is not zero
        but takes v exactly to zero is taken for a zero one: divided by 1.

    Raises:
        ValueError: an argument of the wrong shape or dtype, or a backend that cannot run.

    Example:
        >>> weight = torch.diag(torch.tensor([3.0, 1.0]))
        >>> u = v = torch.tensor([1.0, 0.0])
        >>> float(spectral_normalize(weight, u, v).sigma)
        3.0
    """
    _check(weight, u, v, dim, n_power_iterations)
    dim %= weight.ndim
    if weight.numel() == 0:
        return SpectralNormalized(weight * 1, u, v, u.new_zeros(()))
    ops = operations(select(weight, backend).backend)
    weight, view = in_matrix_layout(weight, dim)
    u, v = u.contiguous(), v.contiguous()
    with torch.no_grad(), _without_autocast(weight.device.type):
        if n_power_iterations > 0:
            u, v, sigma = ops.power_step(weight, view, u, v, n_power_iterations)
            unit_u, unit_v = u, v
        else:
            unit_u, unit_v, sigma = ops.estimate(weight, view, u, v, eps)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        weight_sn = ops.rescale(weight, sigma)
    elif weight.is_complex():
        weight_sn, sigma = _rescale_complex(weight, unit_u, unit_v, dim)
    else:
        weight_sn, sigma = _Rescale.apply(weight, unit_u, unit_v, sigma, view, dim, ops)
    return SpectralNormalized(weight_sn, u, v, sigma)


def l2_normalize(weight: Tensor, eps: float = 1e-12) -> tuple[Tensor, Tensor]:
    """A 1-D ``weight`` over its L2 norm (at least ``eps``), its spectral norm, and that norm.

    As in :func:`torch.nn.utils.parametrizations.spectral_norm`, but that a zero weight is divided
    by 1.
    """
    if weight.numel() == 0:
        return weight * 1, weight.new_zeros((), dtype=weight.abs().dtype)
    is_zero = (weight == 0).all()
    # Where the weight is zero its norm has no second derivative: none is taken there.
    nonzero_weight = torch.where(is_zero, 1, weight)
    largest = nonzero_weight.detach().abs().amax()  # a scale, so that no square leaves its range
    norm = torch.linalg.vector_norm(nonzero_weight / largest) * largest
    divisor = torch.where(is_zero, 1, norm.clamp_min(eps))
    return weight / divisor, torch.where(is_zero, 0, norm)


class _Rescale(torch.autograd.Function):
    """(W, u, v, sigma = u^T W v) -> (W / sigma, sigma), differentiable in W, u and v constant."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        u: Tensor,
        v: Tensor,
        sigma: Tensor,
        view: MatrixView,
        dim: int,
        ops: Operations,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.view, ctx.dim, ctx.ops = view, dim, ops
        # u and v are this access's own, never the live buffers, which the next access overwrites.
        ctx.save_for_backward(weight, u, v, sigma)
        return ops.rescale(weight, sigma), sigma

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        grad, grad_sigma = grads
        weight, u, v, sigma = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(weight)
        grad_weight = _RescaleBackward.apply(
            grad, grad_sigma, weight, u, v, sigma, ctx.view, ctx.dim, ctx.ops
        )
        return grad_weight, None, None, None, None, None, None


class _RescaleBackward(torch.autograd.Function):
    """The gradient of ``_Rescale``, itself differentiable in the incoming gradients and in W.

    With G the gradient of W / sigma, g that of sigma, and sigma = <u v^T, W>, it is

        D = (G - <G, W> / sigma u v^T) / sigma + g u v^T

    and D = G + g u v^T where sigma is zero and W was divided by 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        grad_sigma: Tensor | None,
        weight: Tensor,
        u: Tensor,
        v: Tensor,
        sigma: Tensor,
        view: MatrixView,
        dim: int,
        ops: Operations,
    ) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(grad, weight, u, v)
        grad = like_weight(grad, weight, view, dim)
        return ops.rescale_backward(grad, grad_sigma, weight, view, u, v, sigma)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        # Plain torch from W itself (sigma included), so that derivatives of any order are right.
        grad, weight, u, v = ctx.saved_tensors
        outer = _outer(u, v, weight.shape, ctx.dim)
        grad_out, grad, weight = (x.to(u.dtype) for x in (grads[0], grad, weight))
        sigma = (outer * weight).sum()
        is_zero, sigma = sigma.abs() < torch.finfo(sigma.dtype).tiny, nonzero(sigma)
        along = (outer * grad_out).sum()
        inner = (grad * weight).sum() / sigma
        twice = 2 * along * inner - (grad_out * grad).sum()
        grad_grad = (grad_out - torch.where(is_zero, 0, along) * (weight / sigma)) / sigma
        grad_weight = torch.where(is_zero, 0, (twice * outer - along * grad) / sigma / sigma)
        dtype = ctx.saved_tensors[1].dtype
        grad_grad_sigma = along if ctx.needs_input_grad[1] else None
        return grad_grad.to(dtype), grad_grad_sigma, grad_weight.to(dtype), *[None] * 6


def _rescale_complex(weight: Tensor, u: Tensor, v: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``W / sigma`` and ``sigma = u^H W v`` in torch's own differentiable operations."""
    sigma = (_outer(u.conj(), v, weight.shape, dim) * weight).sum()
    return weight / nonzero(sigma), sigma


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """The estimate is made in the dtype of u and v, whatever autocast says."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _outer(u: Tensor, v: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """``u v^T`` of shape (M, N) folded into the weight's shape."""
    others = [size for axis, size in enumerate(shape) if axis != dim]
    return torch.outer(u, v).view(-1, *others).movedim(0, dim)


def _check(weight: Tensor, u: Tensor, v: Tensor, dim: int, n_power_iterations: int) -> None:
    if weight.ndim < 2:
        raise ValueError(f"weight must have at least 2 dimensions, got {weight.ndim}")
    if not -weight.ndim <= dim < weight.ndim:
        raise ValueError(f"dim must be in [{-weight.ndim}, {weight.ndim - 1}], got {dim}")
    if n_power_iterations < 0:
        raise ValueError(f"n_power_iterations must not be negative, got {n_power_iterations}")
    dtype = state_dtype(weight)
    for (name, vector), size in zip((("u", u), ("v", v)), matrix_shape(weight, dim), strict=True):
        if vector.shape != (size,) or vector.dtype != dtype:
            raise ValueError(
                f"{name} must be a {dtype} tensor of shape ({size},) for this weight, "
                f"got {vector.dtype} of shape {tuple(vector.shape)}"
            )


def matrix_shape(weight: Tensor, dim: int) -> tuple[int, int]:
    """(M, N) of the weight read as a matrix with its outputs along ``dim``."""
    dim %= weight.ndim
    return weight.shape[dim], prod(size for axis, size in enumerate(weight.shape) if axis != dim)


def state_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of u, v and sigma: the weight's, but at least float32."""
    return torch.promote_types(weight.dtype, torch.float32)
