"""One or more power iterations: t = W v, s = W^T t, u = t / |t|, v = s / |s|, sigma = |s| / |t|.

s needs only t's own rows, so a program that holds rows of W adds their share to s while they are on
chip: one read of W serves both products. Sums are kept over a power of two near their largest term,
so that neither sigma^2 nor its square over- or underflows, and are added in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..matrix_view import MatrixView
from . import launch
from .config import VECTOR_BLOCK, ceil_div, chunk_tile, holds_whole_rows, row_tile
from .indexing import (
    logical_column,
    power_of_two,
    reciprocal,
    reciprocal_of_power,
    square_root,
    weight_offset,
)


@triton.jit
def power_rows(
    weight_ptr,  # [P, M, Q]
    v_ptr,  # [N], logical
    t_ptr,  # [M], out
    partial_ptr,  # [programs, N], out: this program's share of s / scale
    scale_ptr,  # [programs], out: a power of two
    square_ptr,  # [programs], out: |t / scale|^2 of this program's rows
    M,
    N,
    C,
    Q: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Whole rows on chip, each read once; a program takes every num_programs-th tile of R rows."""
    pid = tl.program_id(0)
    acc = v_ptr.dtype.element_ty
    n = tl.arange(0, BLOCK_N)
    in_row = n < N
    v = tl.load(v_ptr + logical_column(n, C, K), mask=in_row, other=0.0)  # [BLOCK_N]
    s = tl.zeros([BLOCK_N], dtype=acc)
    square = tl.sum(tl.zeros([R], dtype=acc), axis=0)
    scale = power_of_two(square)
    for tile in range(pid, tl.cdiv(M, R), tl.num_programs(0)):
        m = tile * R + tl.arange(0, R)
        offset = weight_offset(m[:, None], n[None, :], M, N, Q)
        inside = (m < M)[:, None] & in_row[None, :]
        w = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(acc)  # [R, BLOCK_N]
        t = tl.sum(w * v[None, :], axis=1)  # [R]
        tl.store(t_ptr + m, t, mask=m < M)
        new_scale = tl.maximum(scale, power_of_two(tl.max(tl.abs(t), axis=0)))
        shrink = scale * reciprocal_of_power(new_scale)
        t = t * reciprocal_of_power(new_scale)
        s = s * shrink + tl.sum(w * t[:, None], axis=0)
        square = square * shrink * shrink + tl.sum(t * t, axis=0)
        scale = new_scale
    tl.store(partial_ptr + pid.to(tl.int64) * N + n, s, mask=in_row)
    tl.store(scale_ptr + pid, scale)
    tl.store(square_ptr + pid, square)


@triton.jit
def power_chunked(
    weight_ptr,  # [P, M, Q]
    v_ptr,  # [N], logical
    t_ptr,  # [M], out
    partial_ptr,  # [programs, N], out: this program's share of s / scale
    scale_ptr,  # [programs], out: a power of two
    square_ptr,  # [programs], out: |t / scale|^2 of this program's rows
    M,
    N,
    C,
    Q: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Rows of any length: a program takes R rows in chunks, twice, the second time from cache."""
    pid = tl.program_id(0)
    m = pid * R + tl.arange(0, R)
    t = row_products(weight_ptr, v_ptr, m, M, N, C, Q, K, R, BLOCK_N)
    tl.store(t_ptr + m, t, mask=m < M)
    scale = power_of_two(tl.max(tl.abs(t), axis=0))
    t = t * reciprocal_of_power(scale)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (m < M)[:, None] & (n < N)[None, :]
        offset = weight_offset(m[:, None], n[None, :], M, N, Q)
        w = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(t.dtype)
        s = tl.sum(w * t[:, None], axis=0)  # [BLOCK_N]
        tl.store(partial_ptr + pid.to(tl.int64) * N + n, s, mask=n < N)
    tl.store(scale_ptr + pid, scale)
    tl.store(square_ptr + pid, tl.sum(t * t, axis=0))


@triton.jit
def row_products(
    weight_ptr,
    v_ptr,
    m,
    M,
    N,
    C,
    Q: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """t = W v of rows m, [R]; zero for rows past the last."""
    acc = v_ptr.dtype.element_ty
    products = tl.zeros([R, BLOCK_N], dtype=acc)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (m < M)[:, None] & (n < N)[None, :]
        offset = weight_offset(m[:, None], n[None, :], M, N, Q)
        w = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(acc)
        v = tl.load(v_ptr + logical_column(n, C, K), mask=n < N, other=0.0)
        products += w * v[None, :]
    return tl.sum(products, axis=1)


@triton.jit
def reduce_partials(
    partial_ptr,  # [programs, N]
    scale_ptr,  # [programs]
    s_ptr,  # [N], out: s / (the largest scale)
    column_scale_ptr,  # [column blocks], out: a power of two
    column_square_ptr,  # [column blocks], out: |s / column scale|^2 of this block
    programs,
    N,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """s from the programs' shares, ROWS of them at a time, over one block of columns."""
    pid = tl.program_id(0)
    n = pid * BLOCK + tl.arange(0, BLOCK)
    shrink = reciprocal_of_power(largest_scale(scale_ptr, programs, BLOCK))
    s = tl.zeros([BLOCK], dtype=s_ptr.dtype.element_ty)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (n < N)[None, :]
        share = tl.load(
            partial_ptr + row.to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0.0
        )
        scale = tl.load(scale_ptr + row, mask=row < programs, other=0.0) * shrink
        s += tl.sum(share * scale[:, None], axis=0)
    tl.store(s_ptr + n, s, mask=n < N)
    column_scale = power_of_two(tl.max(tl.abs(s), axis=0))
    s = s * reciprocal_of_power(column_scale)
    tl.store(column_scale_ptr + pid, column_scale)
    tl.store(column_square_ptr + pid, tl.sum(s * s, axis=0))


@triton.jit
def normalize_vectors(
    t_ptr,  # [M]
    scale_ptr,  # [programs]
    square_ptr,  # [programs]
    s_ptr,  # [N], memory columns
    column_scale_ptr,  # [column blocks]
    column_square_ptr,  # [column blocks]
    u_ptr,  # [M]
    v_ptr,  # [N], logical
    new_u_ptr,  # [M], out
    new_v_ptr,  # [N], out, logical
    sigma_ptr,  # [], out
    programs,
    column_blocks,
    M,
    N,
    C,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """u = t / |t|, v = s / |s|, sigma = |s| / |t|; u and v as before if it is 0 or not finite."""
    pid = tl.program_id(0)
    t_scale = largest_scale(scale_ptr, programs, BLOCK)
    t_norm = norm_over(scale_ptr, square_ptr, t_scale, programs, BLOCK)
    s_scale = largest_scale(column_scale_ptr, column_blocks, BLOCK)
    s_norm = norm_over(column_scale_ptr, column_square_ptr, s_scale, column_blocks, BLOCK)
    # s is over t_scale, as t_norm is, so the two scales leave sigma; 0 / 0 is a zero weight.
    sigma = tl.where(t_norm == 0, 0.0, s_norm * reciprocal(t_norm) * s_scale)
    good = (sigma > 0) & (sigma < float("inf"))
    if pid == 0:
        tl.store(sigma_ptr, sigma)
    t_factor = reciprocal_of_power(t_scale) * reciprocal(t_norm)
    s_factor = reciprocal_of_power(s_scale) * reciprocal(s_norm)
    i = pid * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(u_ptr + i, mask=i < M)
    t = tl.load(t_ptr + i, mask=i < M)
    tl.store(new_u_ptr + i, tl.where(good, t * t_factor, u), mask=i < M)
    column = logical_column(i, C, K)
    v = tl.load(v_ptr + column, mask=i < N)
    s = tl.load(s_ptr + i, mask=i < N)
    tl.store(new_v_ptr + column, tl.where(good, s * s_factor, v), mask=i < N)


@triton.jit
def largest_scale(scale_ptr, count, BLOCK: tl.constexpr):
    """The largest of ``count`` scales."""
    largest = tl.zeros([BLOCK], dtype=scale_ptr.dtype.element_ty)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(scale_ptr + i, mask=i < count, other=0.0))
    return tl.max(largest, axis=0)


@triton.jit
def norm_over(scale_ptr, square_ptr, scale, count, BLOCK: tl.constexpr):
    """|x| / scale of a vector x in parts, each with |part / its own scale|^2 in ``square``."""
    total = tl.zeros([BLOCK], dtype=scale_ptr.dtype.element_ty)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        ratio = tl.load(scale_ptr + i, mask=i < count, other=0.0) * reciprocal_of_power(scale)
        total += tl.load(square_ptr + i, mask=i < count, other=0.0) * ratio * ratio
    return square_root(tl.sum(total, axis=0))


def power_step(
    weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, n_power_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`snorm_triton.eager.power_step`."""
    with launch.on_device_of(weight):
        sigma = u.new_empty(())
        for _ in range(n_power_iterations):
            u, v = _iterate(weight, view, u, v, sigma)
    return u, v, sigma


def _iterate(
    weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """One iteration, in three launches: the new u and v; ``sigma`` is written."""
    M, N, Q = view.M, view.N, 0 if view.P == 1 else view.Q
    itemsize, lanes = u.element_size(), launch.warp_size(u.device)
    if holds_whole_rows(view.P, view.Q, view.K, itemsize):
        kernel, tile = power_rows, row_tile(M, N, itemsize, lanes)
    else:
        kernel, tile = power_chunked, chunk_tile(M, itemsize, lanes)
    column_blocks = ceil_div(N, VECTOR_BLOCK)
    t, s, partial = u.new_empty(M), u.new_empty(N), u.new_empty(tile.programs, N)
    scale, square = u.new_empty(2, tile.programs)
    column_scale, column_square = u.new_empty(2, column_blocks)
    new_u, new_v = torch.empty_like(u), torch.empty_like(v)
    kernel[(tile.programs,)](
        weight_ptr=weight,
        v_ptr=v,
        t_ptr=t,
        partial_ptr=partial,
        scale_ptr=scale,
        square_ptr=square,
        M=M,
        N=N,
        C=view.C,
        Q=Q,
        K=view.K,
        R=tile.R,
        BLOCK_N=tile.BLOCK_N,
        num_warps=tile.num_warps,
    )
    reduce_partials[(column_blocks,)](
        partial_ptr=partial,
        scale_ptr=scale,
        s_ptr=s,
        column_scale_ptr=column_scale,
        column_square_ptr=column_square,
        programs=tile.programs,
        N=N,
        BLOCK=VECTOR_BLOCK,
        ROWS=8,
    )
    normalize_vectors[(ceil_div(max(M, N), VECTOR_BLOCK),)](
        t_ptr=t,
        scale_ptr=scale,
        square_ptr=square,
        s_ptr=s,
        column_scale_ptr=column_scale,
        column_square_ptr=column_square,
        u_ptr=u,
        v_ptr=v,
        new_u_ptr=new_u,
        new_v_ptr=new_v,
        sigma_ptr=sigma,
        programs=tile.programs,
        column_blocks=column_blocks,
        M=M,
        N=N,
        C=view.C,
        K=view.K,
        BLOCK=VECTOR_BLOCK,
    )
    return new_u, new_v
