"""Rows of a weight scaled to norms that are given: g v / |v|, by rows.

A program holds the first chunk of its rows on chip, so that rows of one chunk are read once.
Squares are summed over a power of two near the row's largest magnitude, so that none over- or
underflows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .indexing import (
    divisor_of,
    multiple,
    power_of_two,
    reciprocal_of_power,
    square_root,
    weight_offset,
)


@triton.jit
def scale_rows_at_once(
    weight_ptr,  # [P, M, Q]
    g_ptr,  # [M]
    out_ptr,  # [P, M, Q], out
    norms_ptr,  # [M], out
    M,
    N,
    FACTOR: tl.constexpr,  # divides N
    INDEX: tl.constexpr,  # the dtype of offsets
    Q: tl.constexpr,
    PLAIN: tl.constexpr,
    WHOLE: tl.constexpr,  # rows in one chunk
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """g v / |v| and |v|, R rows a program, of whatever length."""
    scale_row_block(
        weight_ptr,
        g_ptr,
        out_ptr,
        norms_ptr,
        tl.program_id(0).to(INDEX),
        M,
        multiple(N, FACTOR),
        Q,
        PLAIN,
        WHOLE,
        R,
        BLOCK_N,
    )


@triton.jit
def sum_squares(
    weight_ptr,  # [P, M, Q]
    parts_ptr,  # [2, M, parts], out: powers of two, then sums of squares over the power's square
    parts,
    M,
    N,
    FACTOR: tl.constexpr,  # divides N
    INDEX: tl.constexpr,  # the dtype of offsets
    Q: tl.constexpr,
    PLAIN: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A program's part of the squares of R rows: every parts-th chunk of them."""
    N = multiple(N, FACTOR)
    part = tl.program_id(0) % parts
    m = (tl.program_id(0) // parts).to(INDEX) * R + tl.arange(0, R)
    scale, square = nothing_summed(R, parts_ptr.dtype.element_ty)
    # In the dtype of N, which tells whether columns need more than int32.
    step = parts.to(N.dtype) * BLOCK_N
    for start in range(part.to(N.dtype) * BLOCK_N, N, step):
        offset, inside = chunk_of(m, start, M, N, Q, PLAIN, BLOCK_N)
        v = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(square.dtype)
        scale, square = add_squares(scale, square, v)
    place = m * parts + part
    tl.store(parts_ptr + place, scale, mask=m < M)
    tl.store(parts_ptr + M * parts + place, square, mask=m < M)


@triton.jit
def scale_rows_of_parts(
    weight_ptr,  # [P, M, Q]
    g_ptr,  # [M]
    parts_ptr,  # [2, M, parts]
    out_ptr,  # [P, M, Q], out
    norms_ptr,  # [M], out
    parts,
    M,
    N,
    FACTOR: tl.constexpr,  # divides N
    INDEX: tl.constexpr,  # the dtype of offsets
    Q: tl.constexpr,
    PLAIN: tl.constexpr,
    PARTS: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One chunk of R rows of g v / |v|, the squares being summed; and |v|."""
    N = multiple(N, FACTOR)
    chunks = tl.cdiv(N, BLOCK_N).to(tl.int32)
    # Backwards: sum_squares read these chunks last, so they are the likeliest in cache.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    m = (block // chunks).to(INDEX) * R + tl.arange(0, R)
    start = (block % chunks).to(N.dtype) * BLOCK_N
    i = tl.arange(0, PARTS)
    place = m[:, None] * parts + i[None, :]
    known = (m < M)[:, None] & (i < parts)[None, :]
    scales = tl.load(parts_ptr + place, mask=known, other=0.0)  # [R, PARTS]
    squares = tl.load(parts_ptr + M * parts + place, mask=known, other=0.0)
    scale = power_of_two(tl.max(scales, axis=1))
    shrink = scales * reciprocal_of_power(scale)[:, None]
    square = anywhere(tl.sum(squares * shrink * shrink, axis=1), R)
    scale = anywhere(scale, R)
    norm, inverse, factor = factors_of_rows(scale, square, g_ptr, m, M)
    if start == 0:
        tl.store(norms_ptr + m, norm, mask=m < M)
    scale_chunk(weight_ptr, out_ptr, inverse, factor, m, start, M, N, Q, PLAIN, BLOCK_N)


@triton.jit
def scale_row_block(
    weight_ptr,
    g_ptr,
    out_ptr,
    norms_ptr,
    block,
    M,
    N,
    Q,
    PLAIN: tl.constexpr,
    WHOLE: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The ``block``-th R rows of g v / |v|, and their |v|."""
    m = block * R + tl.arange(0, R)
    scale, square = nothing_summed(R, norms_ptr.dtype.element_ty)
    if not WHOLE:
        for start in range(BLOCK_N, N, BLOCK_N):
            offset, inside = chunk_of(m, start, M, N, Q, PLAIN, BLOCK_N)
            v = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(square.dtype)
            scale, square = add_squares(scale, square, v)
    offset, inside = chunk_of(m, 0, M, N, Q, PLAIN, BLOCK_N)
    v = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(square.dtype)
    scale, square = add_squares(scale, square, v)
    norm, inverse, factor = factors_of_rows(scale, square, g_ptr, m, M)
    tl.store(norms_ptr + m, norm, mask=m < M)
    scaled = v * inverse[:, None] * factor[:, None]
    tl.store(out_ptr + offset, scaled.to(out_ptr.dtype.element_ty), mask=inside)
    if not WHOLE:
        for start in range(BLOCK_N, N, BLOCK_N):
            scale_chunk(weight_ptr, out_ptr, inverse, factor, m, start, M, N, Q, PLAIN, BLOCK_N)


@triton.jit
def scale_chunk(
    weight_ptr,
    out_ptr,
    inverse,
    factor,
    m,
    start,
    M,
    N,
    Q,
    PLAIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """v times inverse times factor, of rows m. The last use of the weight."""
    offset, inside = chunk_of(m, start, M, N, Q, PLAIN, BLOCK_N)
    v = tl.load(weight_ptr + offset, mask=inside, eviction_policy="evict_first")
    scaled = v.to(factor.dtype) * inverse[:, None] * factor[:, None]
    tl.store(out_ptr + offset, scaled.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def chunk_of(m, start, M, N, Q, PLAIN: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where BLOCK_N memory columns of rows m lie from ``start``, and which of them there are.

    In the dtype of m: offsets take most registers, half as many where int32 holds them.
    """
    n = start + tl.arange(0, BLOCK_N)
    offset = weight_offset(m[:, None], n[None, :], M, N, Q, PLAIN)
    return offset.to(m.dtype), (m < M)[:, None] & (n < N)[None, :]


@triton.jit
def nothing_summed(R: tl.constexpr, acc: tl.constexpr):
    """What :func:`add_squares` begins with, [R] each."""
    square = tl.zeros([R], dtype=acc)
    return power_of_two(square), square


@triton.jit
def add_squares(scale, square, v):
    """The sums of squares with those of v, [R, BLOCK_N], over the square of the larger scale."""
    new_scale = tl.maximum(scale, power_of_two(tl.max(tl.abs(v), axis=1)))
    inverse = reciprocal_of_power(new_scale)
    shrink = scale * inverse
    v = v * inverse[:, None]
    return new_scale, square * shrink * shrink + tl.sum(v * v, axis=1)


@triton.jit
def factors_of_rows(scale, square, g_ptr, m, M):
    """|v| of rows m, and the two factors of g / |v|: neither of them alone leaves the range."""
    g = tl.load(g_ptr + m, mask=m < M, other=0.0).to(square.dtype)
    norm = square_root(square) * scale
    inverse = reciprocal_of_power(scale)
    return norm, inverse, quotient(g, divisor_of(norm) * inverse)


@triton.jit
def anywhere(x, R: tl.constexpr):
    """x, [R], of a tile of parts, for a tile of columns.

    Of a single row, it is a scalar in between: else it is spread over all columns where each thread
    holds every one of them, and goes from there through shared memory.
    """
    if R == 1:
        return tl.zeros([R], dtype=x.dtype) + tl.sum(x, axis=0)
    else:
        return x


@triton.jit
def quotient(x, y):
    """x / y rounded to nearest."""
    if y.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)
