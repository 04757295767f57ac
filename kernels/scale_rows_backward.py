"""The gradients of g v / |v|, by rows: <G, v> / |v| of g, and of v what is orthogonal to v.

With x = v / |v| and the gain g / |v|, that of v is gain (G - <G, x> x). As in the forward, a
program holds the first chunk of its rows on chip.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .indexing import divisor_of, multiple, reciprocal
from .scale_rows import anywhere, chunk_of


@triton.jit
def differentiate_rows(
    grad_ptr,  # [P, M, Q]
    weight_ptr,  # [P, M, Q]
    g_ptr,  # [M]
    norms_ptr,  # [M]
    out_ptr,  # [P, M, Q], out: the gradient of v
    out_g_ptr,  # [M], out
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
    """The gradients of v and g, R rows a program, of whatever length."""
    row_gradients(
        grad_ptr,
        weight_ptr,
        g_ptr,
        norms_ptr,
        out_ptr,
        out_g_ptr,
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
def sum_products(
    grad_ptr,  # [P, M, Q]
    weight_ptr,  # [P, M, Q]
    norms_ptr,  # [M]
    parts_ptr,  # [M, parts], out
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
    """A program's part of <G, x> of R rows: every parts-th chunk of them."""
    N = multiple(N, FACTOR)
    part = tl.program_id(0) % parts
    m = (tl.program_id(0) // parts).to(INDEX) * R + tl.arange(0, R)
    inverse = inverse_norms(norms_ptr, m, M)
    dot = tl.zeros([R], dtype=inverse.dtype)
    # In the dtype of N, which tells whether columns need more than int32.
    step = parts.to(N.dtype) * BLOCK_N
    for start in range(part.to(N.dtype) * BLOCK_N, N, step):
        dot += products(grad_ptr, weight_ptr, inverse, m, start, M, N, Q, PLAIN, BLOCK_N)
    tl.store(parts_ptr + m * parts + part, dot, mask=m < M)


@triton.jit
def differentiate_rows_of_parts(
    grad_ptr,  # [P, M, Q]
    weight_ptr,  # [P, M, Q]
    g_ptr,  # [M]
    norms_ptr,  # [M]
    parts_ptr,  # [M, parts]
    out_ptr,  # [P, M, Q], out: the gradient of v
    out_g_ptr,  # [M], out
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
    """One chunk of R rows of the gradient of v, the products being summed; and that of g."""
    N = multiple(N, FACTOR)
    chunks = tl.cdiv(N, BLOCK_N).to(tl.int32)
    # Backwards: sum_products read these chunks last, so they are the likeliest in cache.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    m = (block // chunks).to(INDEX) * R + tl.arange(0, R)
    start = (block % chunks).to(N.dtype) * BLOCK_N
    i = tl.arange(0, PARTS)
    known = (m < M)[:, None] & (i < parts)[None, :]
    shares = tl.load(parts_ptr + m[:, None] * parts + i[None, :], mask=known, other=0.0)
    dot = anywhere(tl.sum(shares, axis=1), R)
    if start == 0:
        tl.store(out_g_ptr + m, dot.to(out_g_ptr.dtype.element_ty), mask=m < M)
    inverse = inverse_norms(norms_ptr, m, M)
    gain = tl.load(g_ptr + m, mask=m < M, other=0.0).to(inverse.dtype) * inverse
    differentiate_chunk(
        grad_ptr, weight_ptr, out_ptr, inverse, dot, gain, m, start, M, N, Q, PLAIN, BLOCK_N
    )


@triton.jit
def row_gradients(
    grad_ptr,
    weight_ptr,
    g_ptr,
    norms_ptr,
    out_ptr,
    out_g_ptr,
    block,
    M,
    N,
    Q,
    PLAIN: tl.constexpr,
    WHOLE: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradients of the ``block``-th R rows of v, and of their g."""
    m = block * R + tl.arange(0, R)
    inverse = inverse_norms(norms_ptr, m, M)
    dot = tl.zeros([R], dtype=inverse.dtype)
    if not WHOLE:
        for start in range(BLOCK_N, N, BLOCK_N):
            dot += products(grad_ptr, weight_ptr, inverse, m, start, M, N, Q, PLAIN, BLOCK_N)
    offset, inside = chunk_of(m, 0, M, N, Q, PLAIN, BLOCK_N)
    grad = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(dot.dtype)
    v = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(dot.dtype)
    x = v * inverse[:, None]
    dot += tl.sum(grad * x, axis=1)
    tl.store(out_g_ptr + m, dot.to(out_g_ptr.dtype.element_ty), mask=m < M)
    gain = tl.load(g_ptr + m, mask=m < M, other=0.0).to(dot.dtype) * inverse
    grad_v = (grad - x * dot[:, None]) * gain[:, None]
    tl.store(out_ptr + offset, grad_v.to(out_ptr.dtype.element_ty), mask=inside)
    if not WHOLE:
        for start in range(BLOCK_N, N, BLOCK_N):
            differentiate_chunk(
                grad_ptr, weight_ptr, out_ptr, inverse, dot, gain, m, start, M, N, Q, PLAIN, BLOCK_N
            )


@triton.jit
def products(
    grad_ptr,
    weight_ptr,
    inverse,
    m,
    start,
    M,
    N,
    Q,
    PLAIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """<G, x> of rows m in BLOCK_N memory columns from ``start``, [R]."""
    offset, inside = chunk_of(m, start, M, N, Q, PLAIN, BLOCK_N)
    grad = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(inverse.dtype)
    v = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(inverse.dtype)
    return tl.sum(grad * (v * inverse[:, None]), axis=1)


@triton.jit
def differentiate_chunk(
    grad_ptr,
    weight_ptr,
    out_ptr,
    inverse,
    dot,
    gain,
    m,
    start,
    M,
    N,
    Q,
    PLAIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(G - dot x) * gain, of rows m. The last use of G and v."""
    offset, inside = chunk_of(m, start, M, N, Q, PLAIN, BLOCK_N)
    grad = tl.load(grad_ptr + offset, mask=inside, eviction_policy="evict_first")
    v = tl.load(weight_ptr + offset, mask=inside, eviction_policy="evict_first")
    x = v.to(dot.dtype) * inverse[:, None]
    grad_v = (grad.to(dot.dtype) - x * dot[:, None]) * gain[:, None]
    tl.store(out_ptr + offset, grad_v.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def inverse_norms(norms_ptr, m, M):
    """1 / |v| of rows m, where a zero row divides by one."""
    norm = tl.load(norms_ptr + m, mask=m < M, other=0.0)
    return reciprocal(divisor_of(norm))
