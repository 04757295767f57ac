"""A power iteration of many weights in three launches."""

from __future__ import annotations

import triton
import triton.language as tl

from .finish import norms, reduce_columns, store_vectors
from .foreach_rescale import layer_factor, scale_layer
from .indexing import multiple
from .power_step import row_block_products
from .table import (
    FIRST,
    M_SIZE,
    N_SIZE,
    NEW_SIGMA,
    NEW_U,
    NEW_V,
    Q_SIZE,
    SCRATCH,
    SHARES,
    SIGMA,
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
    partial_ptr,  # whatever it points to; out: shares of s
    state_ptr,  # each layer's u and v as the last iteration left them, where GOES_ON
    scratch_ptr,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    GOES_ON: tl.constexpr,
    PERMUTES: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """As ``power_chunked``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST, LAYERS)
    acc: tl.constexpr = scratch_ptr.dtype.element_ty
    weight = entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    partial = shares_of(table_ptr, partial_ptr, layer, LAYERS, acc)
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    if GOES_ON:
        v = state_ptr + entry(table_ptr, NEW_V, layer, LAYERS)
    else:
        v = entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc))
    Q = size(table_ptr, Q_SIZE, layer, LAYERS)
    C, K = column_order(table_ptr, layer, LAYERS, PERMUTES)
    weight = tl.multiple_of(weight, 16)
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
    partial_ptr,
    scratch_ptr,
    LAYERS: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """As ``reduce_partials``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST + 1, LAYERS)
    acc: tl.constexpr = scratch_ptr.dtype.element_ty
    partial = shares_of(table_ptr, partial_ptr, layer, LAYERS, acc)
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    scratch = scratch_ptr + entry(table_ptr, SCRATCH, layer, LAYERS)
    programs = tl.cdiv(M, R)
    if N % WIDE == 0:
        reduce_columns(partial, scratch, block, programs, M, multiple(N, WIDE), BLOCK, ROWS)
    else:
        reduce_columns(partial, scratch, block, programs, M, N, BLOCK, ROWS)


@triton.jit
def foreach_finish(
    table_ptr,
    out_ptr,  # each normalized weight, out
    state_ptr,  # each sigma, u and v, out
    scratch_ptr,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    GOES_ON: tl.constexpr,
    RESCALES: tl.constexpr,
    LIVE: tl.constexpr,
    PERMUTES: tl.constexpr,
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    LEARNS: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
    SHARE_COLUMNS: tl.constexpr,
):
    """As ``finish_iteration``, of every layer; u, v and sigma of the table too where LIVE."""
    layer, block = layer_of(table_ptr, FIRST + 2, LAYERS)
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    programs = tl.cdiv(M, R)
    scratch = scratch_ptr + entry(table_ptr, SCRATCH, layer, LAYERS)
    sigma, t_factor, s_factor = norms(scratch, programs, M, N, VECTOR_BLOCK, SHARE_COLUMNS)
    if RESCALES:
        factor = layer_factor(table_ptr, layer, sigma, WEIGHT_TYPE, LAYERS, BOUND, SCALE, LEARNS)
        scale_layer(table_ptr, out_ptr, layer, block, factor, WEIGHT_TYPE, LAYERS, BLOCK)
    store_iteration(
        table_ptr,
        state_ptr,
        scratch,
        layer,
        block,
        programs,
        sigma,
        t_factor,
        s_factor,
        LAYERS,
        GOES_ON,
        LIVE,
        PERMUTES,
        BLOCK,
        VECTOR_BLOCK,
    )


@triton.jit
def store_iteration(
    table_ptr,
    state_ptr,
    scratch_ptr,
    layer,
    block,
    programs,
    sigma,
    t_factor,
    s_factor,
    LAYERS: tl.constexpr,
    GOES_ON: tl.constexpr,
    LIVE: tl.constexpr,
    PERMUTES: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """The ``block``-th part of the sigma, u and v that an iteration leaves."""
    acc = scratch_ptr.dtype.element_ty
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    blocks = tl.cdiv(M.to(tl.int64) * N, BLOCK).to(tl.int32)
    u = entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(acc))
    v = entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc))
    new_u = state_ptr + entry(table_ptr, NEW_U, layer, LAYERS)
    new_v = state_ptr + entry(table_ptr, NEW_V, layer, LAYERS)
    new_sigma = state_ptr + entry(table_ptr, NEW_SIGMA, layer, LAYERS)
    # The live state gets the same values; what has none is written twice.
    live_u, live_v, live_sigma = new_u, new_v, new_sigma
    if LIVE:
        live_u, live_v = u, v
        live_sigma = entry(table_ptr, SIGMA, layer, LAYERS).to(tl.pointer_type(acc))
    if GOES_ON:
        u, v = new_u, new_v
    if block == 0:
        tl.store(new_sigma, sigma)
        tl.store(live_sigma, sigma)
    C, K = column_order(table_ptr, layer, LAYERS, PERMUTES)
    store_vectors(
        scratch_ptr,
        programs,
        u,
        v,
        new_u,
        new_v,
        live_u,
        live_v,
        sigma,
        t_factor,
        s_factor,
        block,
        blocks,
        M,
        N,
        C,
        K,
        VECTOR_BLOCK,
    )


@triton.jit
def shares_of(table_ptr, partial_ptr, layer, LAYERS: tl.constexpr, acc: tl.constexpr):
    """Where the layer's shares of s lie, [programs, N]."""
    partial = partial_ptr.to(tl.pointer_type(acc), bitcast=True)
    return tl.multiple_of(partial + entry(table_ptr, SHARES, layer, LAYERS), 16)
