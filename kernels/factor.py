"""What a weight is multiplied by once its sigma is known."""

from __future__ import annotations

import triton
import triton.language as tl

from .indexing import divisor_of, reciprocal


@triton.jit
def factor_of(sigma, BOUND: tl.constexpr, SCALE: tl.constexpr):
    """SCALE / sigma, or where BOUND is not 0 SCALE / max(1, |sigma| / BOUND)."""
    # Of sigma's dtype: a number by itself is a float32 to Triton.
    scale = tl.full([], SCALE, sigma.dtype)
    if BOUND == 0:
        return scale * reciprocal(divisor_of(sigma))
    else:
        bound = tl.full([], BOUND, sigma.dtype)
        size = tl.abs(sigma)
        return tl.where(size <= bound, scale, scale * bound * reciprocal(size))


@triton.jit
def load_factor(sigma, scale_ptr, BOUND: tl.constexpr, SCALE: tl.constexpr):
    """That times the learned scale, where there is one."""
    factor = factor_of(sigma, BOUND, SCALE)
    if scale_ptr is not None:
        factor *= tl.load(scale_ptr).to(factor.dtype)
    return factor


@triton.jit
def load_factors(inner, sigma_ptr, scale_ptr, BOUND: tl.constexpr, SCALE: tl.constexpr):
    """Of a gradient: what grad - coefficient u v^T is multiplied by, the coefficient, and the
    gradient of the learned scale; inner = <grad, W>.
    """
    sigma = tl.load(sigma_ptr)
    unscaled = factor_of(sigma, BOUND, SCALE)
    # What was not divided by its sigma has the gradient of a product with a constant.
    if BOUND == 0:
        is_divided = divisor_of(sigma) == sigma
    else:
        is_divided = ~(tl.abs(sigma) <= tl.full([], BOUND, sigma.dtype))
    coefficient = tl.where(is_divided, inner * reciprocal(divisor_of(sigma)), 0.0)
    return load_factor(sigma, scale_ptr, BOUND, SCALE), coefficient, inner * unscaled
