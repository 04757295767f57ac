"""The products of a power iteration: t = W v and s = W^T t, in shares of the rows.

s needs only t's own rows, so a program that holds rows of W adds their share to s while they are on
chip: one read of W serves both products. Sums are kept over a power of two near their largest term,
so that neither sigma^2 nor its square over- or underflows, and are added in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .indexing import logical_column, multiple, power_of_two, reciprocal_of_power, weight_offset


@triton.jit
def places(scratch_ptr, M, N, programs):
    """Where scratch memory, t at its start, holds s, the programs' parts of t, and the parts of s.

    The parts of a vector are a scale for each, a power of two, then |part / scale|^2 for each.
    """
    s_ptr = scratch_ptr + M
    return s_ptr, s_ptr + N, s_ptr + N + 2 * programs


@triton.jit
def store_part(parts_ptr, part, parts, scale, square):
    """The scale and the square of one part, in one store: two take registers that spill."""
    i = tl.arange(0, 2)
    tl.store(parts_ptr + part + i * parts, tl.where(i == 0, scale, square))


@triton.jit
def or_start(t, largest, m, M):
    """t of rows m; where its ``largest`` magnitude is 0, next to nothing of a vector to go on from.

    Beside rows that are not zero it does not count: it is 1, 2, 3, ... of the smallest number there
    is, whose bits those are. Where none is, W takes v to zero, and the iteration goes on from that
    vector, the one of :func:`..ops.power_iteration.start_like`.
    """
    if t.dtype == tl.float64:
        start = (m + 1).to(tl.int64).to(tl.float64, bitcast=True)
    else:
        start = (m + 1).to(tl.float32, bitcast=True)
    # A sum, for a maximum drops NaN.
    return tl.where(largest == 0, tl.where(m < M, t + start, t), t)


@triton.jit
def power_rows(
    weight_ptr,  # [P, M, Q]
    v_ptr,  # [N], logical
    partial_ptr,  # [programs, N] of v's dtype, whatever it points to; out: shares of s / scale
    scratch_ptr,  # out: t and its parts
    M,
    N,
    C,
    FACTOR: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    PLAIN: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Whole rows on chip, each read once; a program takes every num_programs-th tile of R rows."""
    pid = tl.program_id(0)
    acc = v_ptr.dtype.element_ty
    N = multiple(N, FACTOR)
    n = tl.arange(0, BLOCK_N)
    in_row = n < N
    v = tl.load(v_ptr + logical_column(n, C, K), mask=in_row, other=0.0)  # [BLOCK_N]
    s = tl.zeros([BLOCK_N], dtype=acc)
    square = tl.sum(tl.zeros([R], dtype=acc), axis=0)
    scale = power_of_two(square)
    for tile in tl.range(pid, tl.cdiv(M, R), tl.num_programs(0), num_stages=STAGES):
        m = tile * R + tl.arange(0, R)
        offset = weight_offset(m[:, None], n[None, :], M, N, Q, PLAIN)
        inside = (m < M)[:, None] & in_row[None, :]
        w = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(acc)  # [R, BLOCK_N]
        t = tl.sum(w * v[None, :], axis=1)  # [R]
        largest = tl.max(tl.abs(t), axis=0)
        t = or_start(t, largest, m, M)
        tl.store(scratch_ptr + m, t, mask=m < M)
        new_scale = tl.maximum(scale, power_of_two(largest))
        shrink = scale * reciprocal_of_power(new_scale)
        t = t * reciprocal_of_power(new_scale)
        s = s * shrink + tl.sum(w * t[:, None], axis=0)
        square = square * shrink * shrink + tl.sum(t * t, axis=0)
        scale = new_scale
    partial = partial_ptr.to(tl.pointer_type(acc), bitcast=True)
    tl.store(partial + pid.to(tl.int64) * N + n, s, mask=in_row)
    _, parts_ptr, _ = places(scratch_ptr, M, N, tl.num_programs(0))
    store_part(parts_ptr, pid, tl.num_programs(0), scale, square)


@triton.jit
def power_chunked(
    weight_ptr,  # as for power_rows
    v_ptr,
    partial_ptr,
    scratch_ptr,
    M,
    N,
    C,
    FACTOR: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    PLAIN: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Rows of any length: a program takes R rows in chunks, twice, the second time from cache."""
    row_block_products(
        weight_ptr,
        v_ptr,
        partial_ptr.to(tl.pointer_type(v_ptr.dtype.element_ty), bitcast=True),
        scratch_ptr,
        tl.program_id(0),
        M,
        multiple(N, FACTOR),
        C,
        Q,
        K,
        PLAIN,
        R,
        BLOCK_N,
    )


@triton.jit
def row_block_products(
    weight_ptr,
    v_ptr,
    partial_ptr,
    scratch_ptr,
    block,
    M,
    N,
    C,
    Q,
    K,
    PLAIN: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The ``block``-th R rows of t, and their share of s."""
    m = block * R + tl.arange(0, R)
    t = row_products(weight_ptr, v_ptr, m, M, N, C, Q, K, PLAIN, R, BLOCK_N)
    largest = tl.max(tl.abs(t), axis=0)
    t = or_start(t, largest, m, M)
    tl.store(scratch_ptr + m, t, mask=m < M)
    scale = power_of_two(largest)
    t = t * reciprocal_of_power(scale)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (m < M)[:, None] & (n < N)[None, :]
        offset = weight_offset(m[:, None], n[None, :], M, N, Q, PLAIN)
        w = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(t.dtype)
        s = tl.sum(w * t[:, None], axis=0)  # [BLOCK_N]
        tl.store(partial_ptr + block.to(tl.int64) * N + n, s, mask=n < N)
    _, parts_ptr, _ = places(scratch_ptr, M, N, tl.cdiv(M, R))
    store_part(parts_ptr, block, tl.cdiv(M, R), scale, tl.sum(t * t, axis=0))


@triton.jit
def row_products(
    weight_ptr,
    v_ptr,
    m,
    M,
    N,
    C,
    Q,
    K,
    PLAIN: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """t = W v of rows m, [R]; zero for rows past the last."""
    acc = v_ptr.dtype.element_ty
    products = tl.zeros([R, BLOCK_N], dtype=acc)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (m < M)[:, None] & (n < N)[None, :]
        offset = weight_offset(m[:, None], n[None, :], M, N, Q, PLAIN)
        w = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(acc)
        v = tl.load(v_ptr + logical_column(n, C, K), mask=n < N, other=0.0)
        products += w * v[None, :]
    return tl.sum(products, axis=1)
