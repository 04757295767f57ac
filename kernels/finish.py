"""The end of a power iteration: the programs' shares become u, v, sigma, and W / sigma."""

from __future__ import annotations

import triton
import triton.language as tl

from .factor import load_factor
from .indexing import (
    logical_column,
    multiple,
    power_of_two,
    reciprocal,
    reciprocal_of_power,
    square_root,
)
from .power_step import places, store_part


@triton.jit
def reduce_partials(
    partial_ptr,  # [programs, N] of s's dtype, whatever it points to
    scratch_ptr,  # parts of t; out: s and its parts
    programs,
    M,
    N,
    FACTOR: tl.constexpr,  # divides N
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """s from the programs' shares, over one block of columns."""
    reduce_columns(
        partial_ptr.to(tl.pointer_type(scratch_ptr.dtype.element_ty), bitcast=True),
        scratch_ptr,
        tl.program_id(0),
        programs,
        M,
        multiple(N, FACTOR),
        BLOCK,
        ROWS,
    )


@triton.jit
def finish_iteration(
    scratch_ptr,  # t, s and their parts
    u_ptr,  # [M]
    v_ptr,  # [N], logical
    new_u_ptr,  # [M], out
    new_v_ptr,  # [N], out, logical
    new_sigma_ptr,  # [], out
    live_u_ptr,  # [M], out too; may be u
    live_v_ptr,  # [N], out too; may be v
    live_sigma_ptr,  # [], out too
    scale_ptr,  # [1], or None
    weight_ptr,  # [numel], in memory order
    out_ptr,  # [numel], out where RESCALES
    programs,
    numel,
    M,
    N,
    C,
    FACTOR: tl.constexpr,  # divides numel
    K: tl.constexpr,
    RESCALES: tl.constexpr,
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
    SHARE_COLUMNS: tl.constexpr,
):
    """u, v, sigma and, where RESCALES, W / sigma; each program takes the norms anew."""
    # Backwards: the power kernels read these elements last, so they are the likeliest in cache.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    numel = multiple(numel, FACTOR)
    offset = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if RESCALES:
        w = tl.load(weight_ptr + offset, mask=offset < numel, eviction_policy="evict_first")
    sigma, t_factor, s_factor = norms(scratch_ptr, programs, M, N, VECTOR_BLOCK, SHARE_COLUMNS)
    if RESCALES:
        scaled = w.to(sigma.dtype) * load_factor(sigma, scale_ptr, BOUND, SCALE)
        tl.store(out_ptr + offset, scaled.to(out_ptr.dtype.element_ty), mask=offset < numel)
    if block == 0:
        tl.store(new_sigma_ptr, sigma)
        tl.store(live_sigma_ptr, sigma)
    store_vectors(
        scratch_ptr,
        programs,
        u_ptr,
        v_ptr,
        new_u_ptr,
        new_v_ptr,
        live_u_ptr,
        live_v_ptr,
        sigma,
        t_factor,
        s_factor,
        block,
        tl.num_programs(0),
        M,
        N,
        C,
        K,
        VECTOR_BLOCK,
    )


@triton.jit
def reduce_columns(
    partial_ptr,
    scratch_ptr,
    block,
    programs,
    M,
    N,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The ``block``-th columns of s, from ROWS shares at a time."""
    s_ptr, scale_ptr, column_parts_ptr = places(scratch_ptr, M, N, programs)
    n = block * BLOCK + tl.arange(0, BLOCK)
    shrink = reciprocal_of_power(largest_scale(scale_ptr, programs, BLOCK))
    s = tl.zeros([BLOCK], dtype=s_ptr.dtype.element_ty)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (n < N)[None, :]
        offset = row.to(tl.int64)[:, None] * N + n[None, :]
        share = tl.load(partial_ptr + offset, mask=inside, other=0.0)
        scale = tl.load(scale_ptr + row, mask=row < programs, other=0.0) * shrink
        s += tl.sum(share * scale[:, None], axis=0)
    tl.store(s_ptr + n, s, mask=n < N)
    column_scale = power_of_two(tl.max(tl.abs(s), axis=0))
    s = s * reciprocal_of_power(column_scale)
    store_part(column_parts_ptr, block, tl.cdiv(N, BLOCK), column_scale, tl.sum(s * s, axis=0))


@triton.jit
def norms(scratch_ptr, programs, M, N, VECTOR_BLOCK: tl.constexpr, SHARE_COLUMNS: tl.constexpr):
    """sigma = |s| / |t|, and what t and s as stored are multiplied by to be unit vectors."""
    _, t_parts_ptr, s_parts_ptr = places(scratch_ptr, M, N, programs)
    t_scale, t_norm = norm_of_parts(t_parts_ptr, programs, VECTOR_BLOCK)
    s_scale, s_norm = norm_of_parts(s_parts_ptr, tl.cdiv(N, SHARE_COLUMNS), VECTOR_BLOCK)
    # s is over t_scale, as t_norm is, so the two scales leave sigma; 0 / 0 is a zero weight.
    sigma = tl.where(t_norm == 0, 0.0, s_norm * reciprocal(t_norm) * s_scale)
    t_factor = reciprocal_of_power(t_scale) * reciprocal(t_norm)
    s_factor = reciprocal_of_power(s_scale) * reciprocal(s_norm)
    return sigma, t_factor, s_factor


@triton.jit
def store_vectors(
    scratch_ptr,
    programs,
    u_ptr,
    v_ptr,
    new_u_ptr,
    new_v_ptr,
    live_u_ptr,
    live_v_ptr,
    sigma,
    t_factor,
    s_factor,
    block,
    blocks,
    M,
    N,
    C,
    K,
    BLOCK: tl.constexpr,
):
    """This block's part of u and v, twice; as they were where sigma is zero or not finite."""
    s_ptr, _, _ = places(scratch_ptr, M, N, programs)
    good = (sigma > 0) & (sigma < float("inf"))
    for start in range(block * BLOCK, tl.maximum(M, N), blocks * BLOCK):
        i = start + tl.arange(0, BLOCK)
        t = tl.load(scratch_ptr + i, mask=i < M)
        u = tl.where(good, t * t_factor, tl.load(u_ptr + i, mask=i < M))
        tl.store(new_u_ptr + i, u, mask=i < M)
        tl.store(live_u_ptr + i, u, mask=i < M)
        column = logical_column(i, C, K)
        s = tl.load(s_ptr + i, mask=i < N)
        v = tl.where(good, s * s_factor, tl.load(v_ptr + column, mask=i < N))
        tl.store(new_v_ptr + column, v, mask=i < N)
        tl.store(live_v_ptr + column, v, mask=i < N)


@triton.jit
def largest_scale(scale_ptr, count, BLOCK: tl.constexpr):
    """The largest of ``count`` scales."""
    largest = tl.zeros([BLOCK], dtype=scale_ptr.dtype.element_ty)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(scale_ptr + i, mask=i < count, other=0.0))
    return tl.max(largest, axis=0)


@triton.jit
def norm_of_parts(scale_ptr, count, BLOCK: tl.constexpr):
    """The largest of ``count`` parts' scales, and |x| over it."""
    scale = largest_scale(scale_ptr, count, BLOCK)
    total = tl.zeros([BLOCK], dtype=scale_ptr.dtype.element_ty)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        ratio = tl.load(scale_ptr + i, mask=i < count, other=0.0) * reciprocal_of_power(scale)
        total += tl.load(scale_ptr + count + i, mask=i < count, other=0.0) * ratio * ratio
    return scale, square_root(tl.sum(total, axis=0))
