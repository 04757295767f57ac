"""Spectral normalization as a pure, twice differentiable function of the weight."""

from __future__ import annotations

from math import inf, prod
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from .ops import modes
from .ops.autograd import differentiable_sigma
from .ops.calls import Access, Evaluate, Iterate
from .ops.dispatch import BackendName, is_sharded
from .ops.rescaling import PLAIN, Rescaling, rescaled

__all__ = ["SpectralNormalized", "l2_normalize", "spectral_normalize"]


def __dir__() -> list[str]:
    return __all__


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
    dtype: torch.dtype | None = None,
    bound: float | None = None,
    scale: float | Tensor = 1.0,
    backend: BackendName = "auto",
) -> SpectralNormalized:
    r"""Divide ``weight`` by its largest singular value, estimated by warm-started power iteration.

    Each iteration takes ``u = W v / |W v|`` and then ``v = W^T u / |W^T u|``; the last gives
    ``sigma = u^T W v``. The gradient holds u and v constant, as Miyato et al. (2018, arXiv
    1802.05957, section 2.1) do. Writes no argument.

    Args:
        weight: at least 2-D, floating or complex, of shape S; read as the matrix of shape (M, N)
            with M = S[dim] and N the product of the other sizes, in order. A DTensor is taken shard
            by shard, and every rank of its mesh must call; the vectors stay plain tensors.
        u: shape (M,), the weight's dtype but at least float32.
        v: shape (N,), the dtype of ``u``.
        dim: the dimension of the outputs.
        n_power_iterations: iterations to run; 0 takes u and v as given, of whatever length.
        eps: lower bound of \|u\| and \|v\| in the division by them without iterations.
        dtype: that of ``weight_sn``, such as autocast's, in place of a cast; None is the weight's.
        bound: divide only where \|sigma\| exceeds it, by \|sigma\| / bound; None divides by any
            sigma. Kernels are compiled for a bound, and for a scale that is a number.
        scale: what the result is multiplied by, a positive number or a real tensor of one element,
            by which it is differentiable too, and which may differ from call to call.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``, as :func:`snorm_triton.spectral_norm` has
            it.

    Returns:
        ``weight_sn`` (shape S, the weight's layout), the new ``u`` and ``v``, and
        ``sigma`` (shape (), the dtype of ``u``). A zero weight gives a zero ``weight_sn``,
        ``sigma`` 0 and the gradient of ``weight_sn`` as that of the weight; a non-finite one shows
        in ``weight_sn`` and ``sigma``; both return u and v as they came. Where a weight that is not
        zero takes v exactly to zero, the iteration goes on from another vector.

    Raises:
        ValueError: an argument of the wrong shape or dtype, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from snorm_triton.functional import spectral_normalize
        >>> weight = torch.diag(torch.tensor([3.0, 1.0]))
        >>> u = v = torch.tensor([1.0, 0.0])
        >>> float(spectral_normalize(weight, u, v).sigma)
        3.0
    """
    _check(weight, u, v, dim, n_power_iterations, dtype)
    dim %= weight.ndim
    access = Access(
        weight,
        u.detach().contiguous(),
        v.detach().contiguous(),
        dim,
        Iterate(n_power_iterations) if n_power_iterations else Evaluate(eps),
        dtype or weight.dtype,
        backend,
        _rescaling(bound, scale),
    )
    weight_sn, taken_u, taken_v, sigma, _ = modes.current(weight).normalize(access)
    if weight_sn.requires_grad and not sigma.requires_grad:
        sigma = differentiable_sigma(sigma, weight, taken_u, taken_v, dim)
    if n_power_iterations > 0:
        # The gradient keeps those it took, whatever becomes of these.
        u, v = taken_u.clone(), taken_v.clone()
    return SpectralNormalized(weight_sn, u, v, sigma)


def l2_normalize(
    weight: Tensor, eps: float = 1e-12, rescaling: Rescaling = PLAIN
) -> tuple[Tensor, Tensor]:
    """A 1-D ``weight`` over its L2 norm (at least ``eps``), its spectral norm, and that norm.

    As in :func:`torch.nn.utils.parametrizations.spectral_norm`, but that a zero weight is divided
    by 1.
    """
    if weight.numel() == 0:
        return weight * 1, weight.new_zeros((), dtype=weight.abs().dtype)
    if is_sharded(weight):
        from .ops.modes.sharded import check

        check(weight)
    wide = weight.to(state_dtype(weight))
    is_zero = (wide == 0).all()
    # Where the weight is zero its norm has no second derivative: none is taken there.
    nonzero_weight = torch.where(is_zero, 1, wide)
    largest = nonzero_weight.detach().abs().amax()  # a scale, so that no square leaves its range
    norm = torch.linalg.vector_norm(nonzero_weight / largest) * largest
    clamped = torch.where(is_zero, 0, norm.clamp_min(eps))
    return rescaled(wide, clamped, rescaling).to(weight.dtype), torch.where(is_zero, 0, norm)


def is_positive(value: object) -> bool:
    """Whether it is a number above zero; infinity is one."""
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) > 0


def _rescaling(bound: float | None, scale: float | Tensor) -> Rescaling:
    if bound is not None and not is_positive(bound):
        raise ValueError(f"bound must be a positive number, got {bound!r}")
    if not isinstance(scale, Tensor):
        if not is_positive(scale) or scale == inf:
            raise ValueError(f"scale must be positive and finite, or a tensor, got {scale!r}")
        return PLAIN if bound is None and scale == 1 else Rescaling(float(bound or 0), float(scale))
    if scale.numel() != 1 or not scale.is_floating_point():
        raise ValueError(
            "scale must be a number or a real floating point tensor of one element, got "
            f"{scale.dtype} of shape {tuple(scale.shape)}"
        )
    return Rescaling(float(bound or 0), learned=scale.reshape(1))


def _check(
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    dim: int,
    n_power_iterations: int,
    dtype: torch.dtype | None,
) -> None:
    if weight.ndim < 2:
        raise ValueError(f"weight must have at least 2 dimensions, got {weight.ndim}")
    if not -weight.ndim <= dim < weight.ndim:
        raise ValueError(f"dim must be in [{-weight.ndim}, {weight.ndim - 1}], got {dim}")
    if n_power_iterations < 0:
        raise ValueError(f"n_power_iterations must not be negative, got {n_power_iterations}")
    if dtype is not None and not (
        dtype.is_complex if weight.is_complex() else dtype.is_floating_point
    ):
        kind = "complex" if weight.is_complex() else "floating point"
        raise ValueError(f"dtype must be {kind} for a {weight.dtype} weight, got {dtype}")
    dtype = state_dtype(weight)
    for (name, vector), size in zip((("u", u), ("v", v)), matrix_shape(weight, dim), strict=True):
        if vector.shape != (size,) or vector.dtype != dtype:
            raise ValueError(
                f"{name} must be a {dtype} tensor of shape ({size},) for this weight, "
                f"got {vector.dtype} of shape {tuple(vector.shape)}"
            )


def check_vectors(vectors: tuple[Tensor, Tensor], weight: Tensor, dim: int) -> None:
    """Raise ValueError where u and v are not those of a weight of this shape."""
    shapes = [tuple(vector.shape) for vector in vectors]
    expected = [(size,) for size in matrix_shape(weight, dim)]
    if shapes != expected:
        raise ValueError(
            f"vectors must be u and v of shapes {expected[0]} and {expected[1]} for a weight of "
            f"shape {tuple(weight.shape)} and dim {dim}, got {shapes}"
        )


def matrix_shape(weight: Tensor, dim: int) -> tuple[int, int]:
    """(M, N) of the weight read as a matrix with its outputs along ``dim``."""
    dim %= weight.ndim
    return weight.shape[dim], prod([size for axis, size in enumerate(weight.shape) if axis != dim])


def state_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of u, v and sigma: the weight's, but at least float32."""
    return torch.promote_types(weight.dtype, torch.float32)
