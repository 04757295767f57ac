"""Everything about a small weight in one program: one launch each way."""

from __future__ import annotations

import triton
import triton.language as tl

from .factor import load_factor, load_factors
from .indexing import (
    logical_column,
    multiple,
    power_of_two,
    reciprocal,
    reciprocal_at_least,
    reciprocal_of_power,
    square_root,
    weight_offset,
)
from .power_step import or_start


@triton.jit
def normalize_small(
    weight_ptr,  # [P, M, Q]
    u_ptr,  # [M]
    v_ptr,  # [N], logical
    out_ptr,  # [P, M, Q], out
    new_u_ptr,  # [M], out
    new_v_ptr,  # [N], out, logical
    new_sigma_ptr,  # [], out
    live_u_ptr,  # [M], out too, where ITERATES; may be u
    live_v_ptr,  # [N], out too, where ITERATES; may be v
    live_sigma_ptr,  # [], out too
    scale_ptr,  # [1], or None
    n_power_iterations,
    eps,
    M,
    N,
    C,
    FACTOR: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    PLAIN: tl.constexpr,
    ITERATES: tl.constexpr,
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """W / sigma after ``n_power_iterations``, or of u and v as they are, made unit."""
    acc = u_ptr.dtype.element_ty
    N = multiple(N, FACTOR)
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    offset = weight_offset(m[:, None], n[None, :], M, N, Q, PLAIN)
    inside = (m < M)[:, None] & (n < N)[None, :]
    column = logical_column(n, C, K)
    w = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(acc)  # [BLOCK_M, BLOCK_N]
    u = tl.load(u_ptr + m, mask=m < M, other=0.0)
    v = tl.load(v_ptr + column, mask=n < N, other=0.0)
    if ITERATES:
        sigma = tl.sum(tl.zeros([BLOCK_M], dtype=acc), axis=0)
        for _ in range(n_power_iterations):
            t = tl.sum(w * v[None, :], axis=1)
            t, _ = unit(or_start(t, tl.max(tl.abs(t), axis=0), m, M))
            s, sigma = unit(tl.sum(w * t[:, None], axis=0))
            good = (sigma > 0) & (sigma < float("inf"))
            u = tl.where(good, t, u)
            v = tl.where(good, s, v)
        tl.store(live_u_ptr + m, u, mask=m < M)
        tl.store(live_v_ptr + column, v, mask=n < N)
    else:
        u = u * reciprocal_at_least(unit(u)[1], eps)
        v = v * reciprocal_at_least(unit(v)[1], eps)
        sigma = tl.sum(u * tl.sum(w * v[None, :], axis=1), axis=0)
    tl.store(new_u_ptr + m, u, mask=m < M)
    tl.store(new_v_ptr + column, v, mask=n < N)
    tl.store(new_sigma_ptr, sigma)
    tl.store(live_sigma_ptr, sigma)
    scaled = w * load_factor(sigma, scale_ptr, BOUND, SCALE)
    tl.store(out_ptr + offset, scaled.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rescale_backward_small(
    grad_ptr,  # [P, M, Q]
    weight_ptr,  # [P, M, Q]
    u_ptr,  # [M]
    v_ptr,  # [N], logical
    sigma_ptr,  # []
    scale_ptr,  # [1], or None
    out_ptr,  # [P, M, Q], out
    grad_scale_ptr,  # [1], out, or None
    M,
    N,
    C,
    FACTOR: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    PLAIN: tl.constexpr,
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(grad - <grad, W> / sigma u v^T) / sigma."""
    acc = u_ptr.dtype.element_ty
    N = multiple(N, FACTOR)
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    offset = weight_offset(m[:, None], n[None, :], M, N, Q, PLAIN)
    inside = (m < M)[:, None] & (n < N)[None, :]
    g = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(acc)  # [BLOCK_M, BLOCK_N]
    w = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(acc)
    u = tl.load(u_ptr + m, mask=m < M, other=0.0)
    v = tl.load(v_ptr + logical_column(n, C, K), mask=n < N, other=0.0)
    inner = tl.sum(tl.sum(g * w, axis=1), axis=0)
    factor, coefficient, grad_scale = load_factors(inner, sigma_ptr, scale_ptr, BOUND, SCALE)
    if grad_scale_ptr is not None:
        tl.store(grad_scale_ptr, grad_scale.to(grad_scale_ptr.dtype.element_ty))
    grad_weight = (g - coefficient * u[:, None] * v[None, :]) * factor
    tl.store(out_ptr + offset, grad_weight.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def unit(x):
    """x / |x| and |x|, such that no square leaves the dtype's range; zero stays zero."""
    scale = power_of_two(tl.max(tl.abs(x), axis=0))
    x = x * reciprocal_of_power(scale)
    norm = square_root(tl.sum(x * x, axis=0))
    return x * reciprocal(tl.where(norm == 0, 1.0, norm)), norm * scale
