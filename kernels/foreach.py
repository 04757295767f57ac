"""One power iteration of many weights, and their gradient: three launches and two."""

from __future__ import annotations

import triton
import triton.language as tl

from .finish import norms, reduce_columns, store_vectors
from .indexing import multiple
from .power_step import row_block_products
from .rescale import divide_block
from .rescale_backward import dot_share, factors, grad_block
from .table import (
    FIRST,
    GRAD,
    M_SIZE,
    N_SIZE,
    OUT,
    OUT_UNIT,
    Q_SIZE,
    SCRATCH,
    SIGMA,
    STATE,
    WEIGHT,
    WIDE,
    U,
    V,
    column_order,
    entry,
    layer_of,
    size,
)


@triton.jit
def foreach_power(
    table_ptr,  # [FIELDS, LAYERS]
    out_ptr,  # the outputs' memory, where the shares of s lie meanwhile
    scratch_ptr,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    PERMUTES: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """As ``power_chunked``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST, LAYERS)
    acc = scratch_ptr.dtype.element_ty
    weight = entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    v = entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc))
    partial = out_ptr + entry(table_ptr, OUT, layer, LAYERS) * OUT_UNIT
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    Q = size(table_ptr, Q_SIZE, layer, LAYERS)
    C, K = column_order(table_ptr, layer, LAYERS, PERMUTES)
    weight = tl.multiple_of(weight, 16)
    partial = partial.to(tl.pointer_type(acc), bitcast=True)
    scratch = scratch_ptr + entry(table_ptr, SCRATCH, layer, LAYERS)
    if Q % WIDE != 0:
        row_block_products(weight, v, partial, scratch, block, M, N, C, Q, K, False, R, BLOCK_N)
    elif Q == N:
        N = multiple(N, WIDE)
        row_block_products(weight, v, partial, scratch, block, M, N, C, N, K, True, R, BLOCK_N)
    else:
        N, Q = multiple(N, WIDE), multiple(Q, WIDE)
        row_block_products(weight, v, partial, scratch, block, M, N, C, Q, K, False, R, BLOCK_N)


@triton.jit
def foreach_reduce(
    table_ptr,
    out_ptr,
    scratch_ptr,
    LAYERS: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """As ``reduce_partials``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST + 1, LAYERS)
    partial = out_ptr + entry(table_ptr, OUT, layer, LAYERS) * OUT_UNIT
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    partial = partial.to(tl.pointer_type(scratch_ptr.dtype.element_ty), bitcast=True)
    scratch = scratch_ptr + entry(table_ptr, SCRATCH, layer, LAYERS)
    programs = tl.cdiv(M, R)
    if N % WIDE == 0:
        reduce_columns(partial, scratch, block, programs, M, multiple(N, WIDE), BLOCK, ROWS)
    else:
        reduce_columns(partial, scratch, block, programs, M, N, BLOCK, ROWS)


@triton.jit
def foreach_finish(
    table_ptr,
    out_ptr,  # the outputs' memory
    state_ptr,  # sigmas [LAYERS], then each layer's u and v, out
    scratch_ptr,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    RESCALES: tl.constexpr,
    PERMUTES: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
    SHARE_COLUMNS: tl.constexpr,
):
    """As ``finish_iteration``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST + 2, LAYERS)
    acc = scratch_ptr.dtype.element_ty
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    numel = M.to(tl.int64) * N
    programs = tl.cdiv(M, R)
    scratch = scratch_ptr + entry(table_ptr, SCRATCH, layer, LAYERS)
    sigma, t_factor, s_factor = norms(scratch, programs, M, N, VECTOR_BLOCK, SHARE_COLUMNS)
    if RESCALES:
        weight = entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
        weight = tl.multiple_of(weight, 16)
        out = out_ptr + entry(table_ptr, OUT, layer, LAYERS) * OUT_UNIT
        whole = multiple(numel, WIDE)
        divide_block(weight, sigma, out, block, whole, BLOCK)
        if block == 0:
            divide_block(weight + whole, sigma, out + whole, block, numel - whole, WIDE)
    if block == 0:
        tl.store(state_ptr + layer, sigma)
        tl.store(entry(table_ptr, SIGMA, layer, LAYERS).to(tl.pointer_type(acc)), sigma)
    u = entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(acc))
    v = entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc))
    C, K = column_order(table_ptr, layer, LAYERS, PERMUTES)
    new_u = state_ptr + entry(table_ptr, STATE, layer, LAYERS)
    store_vectors(
        scratch,
        programs,
        u,
        v,
        new_u,
        new_u + M,
        u,
        v,
        sigma,
        t_factor,
        s_factor,
        block,
        tl.cdiv(numel, BLOCK).to(tl.int32),
        M,
        N,
        C,
        K,
        VECTOR_BLOCK,
    )


@triton.jit
def foreach_grad_dot(
    table_ptr,
    partial_ptr,  # [LAYERS, PROGRAMS], out
    GRAD_TYPE: tl.constexpr,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As ``grad_dot``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST, LAYERS)
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    numel = M.to(tl.int64) * N
    grad = entry(table_ptr, GRAD, layer, LAYERS).to(tl.pointer_type(GRAD_TYPE))
    weight = entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    grad, weight = tl.multiple_of(grad, 16), tl.multiple_of(weight, 16)
    acc: tl.constexpr = partial_ptr.dtype.element_ty
    programs = tl.minimum(tl.cdiv(numel, BLOCK), PROGRAMS)
    whole = multiple(numel, WIDE)
    share = dot_share(grad, weight, block, programs, whole, acc, BLOCK)
    if block == 0:
        share += dot_share(grad + whole, weight + whole, block, programs, numel - whole, acc, WIDE)
    tl.store(partial_ptr + layer * PROGRAMS + block, share)


@triton.jit
def foreach_grad_apply(
    table_ptr,
    partial_ptr,  # [LAYERS, PROGRAMS]
    GRAD_TYPE: tl.constexpr,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    PERMUTES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    DOT_BLOCK: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As ``grad_apply``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST + 1, LAYERS)
    acc = partial_ptr.dtype.element_ty
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    numel = M.to(tl.int64) * N
    i = tl.arange(0, PROGRAMS)
    share = tl.load(
        partial_ptr + layer * PROGRAMS + i, mask=i < tl.cdiv(numel, DOT_BLOCK), other=0.0
    )
    sigma = entry(table_ptr, SIGMA, layer, LAYERS).to(tl.pointer_type(acc))
    inverse, coefficient = factors(tl.sum(share, axis=0), sigma)
    grad = entry(table_ptr, GRAD, layer, LAYERS).to(tl.pointer_type(GRAD_TYPE))
    u = entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(acc))
    v = entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc))
    out = entry(table_ptr, OUT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    grad, out = tl.multiple_of(grad, 16), tl.multiple_of(out, 16)
    Q = size(table_ptr, Q_SIZE, layer, LAYERS)
    C, K = column_order(table_ptr, layer, LAYERS, PERMUTES)
    P = N // Q
    if Q % WIDE != 0:
        grad_block(grad, u, v, out, inverse, coefficient, block, P, M * Q, C, Q, K, False, 1, BLOCK)
    elif Q == N:
        N = multiple(N, WIDE)
        grad_block(grad, u, v, out, inverse, coefficient, block, M, N, C, N, K, True, R, BLOCK // R)
    else:
        Q = multiple(Q, WIDE)
        grad_block(grad, u, v, out, inverse, coefficient, block, P, M * Q, C, Q, K, False, 1, BLOCK)
