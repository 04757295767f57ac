"""W / sigma for sigma = u^T W v of u and v as they are, made unit: what evaluation uses."""

from __future__ import annotations

import triton
import triton.language as tl

from .factor import load_factor
from .indexing import multiple, reciprocal_at_least, square_root
from .power_step import row_products


@triton.jit
def estimate_parts(
    weight_ptr,  # [P, M, Q]
    u_ptr,  # [M]
    v_ptr,  # [N], logical
    parts_ptr,  # [3, programs], out: of u^T W v, |u|^2 and |v|^2
    M,
    N,
    C,
    FACTOR: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    PLAIN: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """This program's part of each: of its rows, and of as many columns as the others take."""
    store_estimate_parts(
        weight_ptr,
        u_ptr,
        v_ptr,
        parts_ptr,
        tl.program_id(0),
        tl.num_programs(0),
        M,
        multiple(N, FACTOR),
        C,
        Q,
        K,
        PLAIN,
        R,
        BLOCK_N,
        VECTOR_BLOCK,
    )


@triton.jit
def finish_estimate(
    weight_ptr,  # [numel], in memory order
    u_ptr,  # [M]
    v_ptr,  # [N]
    parts_ptr,  # [3, programs]
    scale_ptr,  # [1], or None
    out_ptr,  # [numel], out
    new_u_ptr,  # [M], out
    new_v_ptr,  # [N], out
    new_sigma_ptr,  # [], out
    programs,
    numel,
    M,
    N,
    eps,
    FACTOR: tl.constexpr,  # divides numel
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """W / sigma, u / |u|, v / |v| and sigma, norms at least eps; each program adds up anew."""
    # Backwards: the last blocks were read last, so they are the likeliest in cache.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    numel = multiple(numel, FACTOR)
    offset = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w = tl.load(weight_ptr + offset, mask=offset < numel, eviction_policy="evict_first")
    sigma, u_factor, v_factor = estimated(parts_ptr, programs, eps, VECTOR_BLOCK)
    scaled = w.to(sigma.dtype) * load_factor(sigma, scale_ptr, BOUND, SCALE)
    tl.store(out_ptr + offset, scaled.to(out_ptr.dtype.element_ty), mask=offset < numel)
    if block == 0:
        tl.store(new_sigma_ptr, sigma)
    blocks = tl.num_programs(0)
    store_scaled(new_u_ptr, u_ptr, u_factor, block, blocks, M, VECTOR_BLOCK)
    store_scaled(new_v_ptr, v_ptr, v_factor, block, blocks, N, VECTOR_BLOCK)


@triton.jit
def store_estimate_parts(
    weight_ptr,
    u_ptr,
    v_ptr,
    parts_ptr,
    block,
    blocks,
    M,
    N,
    C,
    Q,
    K,
    PLAIN: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """The ``block``-th of the parts of u^T W v, |u|^2 and |v|^2."""
    m = block * R + tl.arange(0, R)
    t = row_products(weight_ptr, v_ptr, m, M, N, C, Q, K, PLAIN, R, BLOCK_N)
    u = tl.load(u_ptr + m, mask=m < M, other=0.0)
    # Rows past the last are zero in both; a NaN row must stay one.
    tl.store(parts_ptr + block, tl.sum(u * t, axis=0))
    tl.store(parts_ptr + blocks + block, tl.sum(u * u, axis=0))
    square = tl.zeros([VECTOR_BLOCK], dtype=v_ptr.dtype.element_ty)
    for start in range(block * VECTOR_BLOCK, N, blocks * VECTOR_BLOCK):
        i = start + tl.arange(0, VECTOR_BLOCK)
        v = tl.load(v_ptr + i, mask=i < N, other=0.0)
        square += v * v
    tl.store(parts_ptr + 2 * blocks + block, tl.sum(square, axis=0))


@triton.jit
def estimated(parts_ptr, parts, eps, BLOCK: tl.constexpr):
    """sigma, and what u and v as they are are multiplied by to be unit vectors."""
    dot = total(parts_ptr, parts, BLOCK)
    u_norm = square_root(total(parts_ptr + parts, parts, BLOCK))
    u_factor = reciprocal_at_least(u_norm, eps)
    v_norm = square_root(total(parts_ptr + 2 * parts, parts, BLOCK))
    v_factor = reciprocal_at_least(v_norm, eps)
    return dot * u_factor * v_factor, u_factor, v_factor


@triton.jit
def total(x_ptr, size, BLOCK: tl.constexpr):
    """The sum of x, [size]."""
    sums = tl.zeros([BLOCK], dtype=x_ptr.dtype.element_ty)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(x_ptr + i, mask=i < size, other=0.0)
    return tl.sum(sums, axis=0)


@triton.jit
def store_scaled(scaled_ptr, x_ptr, factor, block, blocks, size, BLOCK: tl.constexpr):
    """This block's part of x * factor, [size]."""
    for start in range(block * BLOCK, size, blocks * BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < size)
        tl.store(scaled_ptr + i, x * factor, mask=i < size)
