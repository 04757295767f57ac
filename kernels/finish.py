"""The end of a power iteration: the programs' shares become u, v and sigma."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..matrix_view import MatrixView
from .config import VECTOR_BLOCK, ceil_div
from .indexing import (
    logical_column,
    power_of_two,
    reciprocal,
    reciprocal_of_power,
    square_root,
)


class Partials(NamedTuple):
    """What the programs of a power kernel leave behind."""

    t: Tensor  # [M]
    s: Tensor  # [programs, N]: each program's share of s / its scale
    scale: Tensor  # [programs], powers of two
    square: Tensor  # [programs]: |t / scale|^2 of each program's rows


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


def finish(
    partials: Partials, view: MatrixView, u: Tensor, v: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """The new u (M,) and v (N,), in two launches; ``sigma`` () is written."""
    M, N, programs = view.M, view.N, len(partials.scale)
    column_blocks = ceil_div(N, VECTOR_BLOCK)
    s = u.new_empty(N)
    column_scale, column_square = u.new_empty(2, column_blocks)
    new_u, new_v = torch.empty_like(u), torch.empty_like(v)
    reduce_partials[(column_blocks,)](
        partial_ptr=partials.s,
        scale_ptr=partials.scale,
        s_ptr=s,
        column_scale_ptr=column_scale,
        column_square_ptr=column_square,
        programs=programs,
        N=N,
        BLOCK=VECTOR_BLOCK,
        ROWS=8,
    )
    normalize_vectors[(ceil_div(max(M, N), VECTOR_BLOCK),)](
        t_ptr=partials.t,
        scale_ptr=partials.scale,
        square_ptr=partials.square,
        s_ptr=s,
        column_scale_ptr=column_scale,
        column_square_ptr=column_square,
        u_ptr=u,
        v_ptr=v,
        new_u_ptr=new_u,
        new_v_ptr=new_v,
        sigma_ptr=sigma,
        programs=programs,
        column_blocks=column_blocks,
        M=M,
        N=N,
        C=view.C,
        K=view.K,
        BLOCK=VECTOR_BLOCK,
    )
    return new_u, new_v
