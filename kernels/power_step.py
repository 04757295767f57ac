"""One or more power iterations: t = W v, s = W^T t, u = t / |t|, v = s / |s|, sigma = |s| / |t|.

s needs only t's own rows, so a program that holds rows of W adds their share to s while they are on
chip: one read of W serves both products. Sums are kept over a power of two near their largest term,
so that neither sigma^2 nor its square over- or underflows, and are added in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..matrix_view import MatrixView
from . import launch
from .config import chunk_tile, holds_whole_rows, row_tile
from .finish import Partials, finish
from .indexing import logical_column, power_of_two, reciprocal_of_power, weight_offset


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
    M, N = view.M, view.N
    itemsize, lanes = u.element_size(), launch.warp_size(u.device)
    if holds_whole_rows(view.P, view.Q, view.K, itemsize):
        kernel, tile = power_rows, row_tile(M, N, itemsize, lanes)
    else:
        kernel, tile = power_chunked, chunk_tile(M, itemsize, lanes)
    partials = Partials(
        u.new_empty(M), u.new_empty(tile.programs, N), *u.new_empty(2, tile.programs)
    )
    kernel[(tile.programs,)](
        weight_ptr=weight,
        v_ptr=v,
        t_ptr=partials.t,
        partial_ptr=partials.s,
        scale_ptr=partials.scale,
        square_ptr=partials.square,
        M=M,
        N=N,
        C=view.C,
        Q=0 if view.P == 1 else view.Q,
        K=view.K,
        R=tile.R,
        BLOCK_N=tile.BLOCK_N,
        num_warps=tile.num_warps,
    )
    return finish(partials, view, u, v, sigma)
