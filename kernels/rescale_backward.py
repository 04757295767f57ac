"""The gradient of W / sigma: one pass for <grad, W>, one for the result."""

from __future__ import annotations

import triton
import triton.language as tl

from .factor import load_factors
from .indexing import logical_column, multiple


@triton.jit
def grad_dot(
    grad_ptr,  # [numel]
    weight_ptr,  # [numel]
    partial_ptr,  # [programs], out
    numel,
    FACTOR: tl.constexpr,  # divides numel
    BLOCK: tl.constexpr,
):
    """This program's share of <grad, weight>; a program takes every num_programs-th block."""
    share = dot_share(
        grad_ptr,
        weight_ptr,
        tl.program_id(0),
        tl.num_programs(0),
        multiple(numel, FACTOR),
        partial_ptr.dtype.element_ty,
        BLOCK,
    )
    tl.store(partial_ptr + tl.program_id(0), share)


@triton.jit
def grad_apply(
    grad_ptr,  # [rows, columns]
    partial_ptr,  # [programs]
    u_ptr,  # [M]
    v_ptr,  # [N], logical
    sigma_ptr,  # []
    scale_ptr,  # [1], or None
    out_ptr,  # [rows, columns], out
    grad_scale_ptr,  # [1], out, or None
    programs,
    rows,
    columns,
    C,
    FACTOR: tl.constexpr,  # divides columns
    Q: tl.constexpr,
    K: tl.constexpr,
    PLAIN: tl.constexpr,
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(grad - <grad, W> / sigma u v^T) / sigma, in two dimensions of memory."""
    i = tl.arange(0, PROGRAMS)
    inner = tl.sum(tl.load(partial_ptr + i, mask=i < programs, other=0.0), axis=0)
    factor, coefficient, grad_scale = load_factors(inner, sigma_ptr, scale_ptr, BOUND, SCALE)
    # Backwards: grad_dot read these blocks last, so they are the likeliest in cache.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    if grad_scale_ptr is not None and block == 0:
        tl.store(grad_scale_ptr, grad_scale.to(grad_scale_ptr.dtype.element_ty))
    grad_block(
        grad_ptr,
        u_ptr,
        v_ptr,
        out_ptr,
        factor,
        coefficient,
        block,
        rows,
        multiple(columns, FACTOR),
        C,
        Q,
        K,
        PLAIN,
        R,
        BLOCK_N,
    )


@triton.jit
def dot_share(grad_ptr, weight_ptr, first, step, numel, acc: tl.constexpr, BLOCK: tl.constexpr):
    """The part of <grad, weight> in the blocks from ``first`` in steps of ``step``."""
    total = tl.zeros([BLOCK], dtype=acc)
    for start in range(first.to(tl.int64) * BLOCK, numel, step.to(tl.int64) * BLOCK):
        offset = start + tl.arange(0, BLOCK)
        g = tl.load(grad_ptr + offset, mask=offset < numel, other=0.0).to(acc)
        w = tl.load(weight_ptr + offset, mask=offset < numel, other=0.0).to(acc)
        total += g * w
    return tl.sum(total, axis=0)


@triton.jit
def grad_block(
    grad_ptr,
    u_ptr,
    v_ptr,
    out_ptr,
    factor,
    coefficient,
    block,
    rows,
    columns,
    C,
    Q,
    K,
    PLAIN: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(grad - coefficient u v^T) * factor of one block; memory is (M, N) where PLAIN, or (P, M Q).

    The last use of grad.
    """
    blocks = tl.cdiv(columns, BLOCK_N)
    row = (block // blocks) * R + tl.arange(0, R)
    column = (block % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row.to(tl.int64)[:, None] * columns + column[None, :]
    g = tl.load(grad_ptr + offset, mask=inside, eviction_policy="evict_first")
    if PLAIN:
        u = tl.load(u_ptr + row, mask=row < rows, other=0.0)[:, None]
        v = tl.load(v_ptr + logical_column(column, C, K), mask=column < columns, other=0.0)[None, :]
    else:
        u = tl.load(u_ptr + column // Q, mask=column < columns, other=0.0)[None, :]
        n = row[:, None] * Q + (column % Q)[None, :]
        v = tl.load(v_ptr + logical_column(n, C, K), mask=inside, other=0.0)
    grad_weight = (g.to(factor.dtype) - coefficient * u * v) * factor
    tl.store(out_ptr + offset, grad_weight.to(out_ptr.dtype.element_ty), mask=inside)
