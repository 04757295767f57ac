"""Many weights over a sigma of u and v as they are: two launches, or one where it is known."""

from __future__ import annotations

import triton
import triton.language as tl

from .estimate import estimated, store_estimate_parts, store_scaled
from .foreach_rescale import layer_factor, scale_layer
from .indexing import multiple
from .table import (
    FIRST,
    M_SIZE,
    N_SIZE,
    NEW_SIGMA,
    NEW_U,
    NEW_V,
    Q_SIZE,
    SCRATCH,
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
def foreach_estimate_parts(
    table_ptr,
    scratch_ptr,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    PERMUTES: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """As ``estimate_parts``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST, LAYERS)
    acc = scratch_ptr.dtype.element_ty
    weight = entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    weight = tl.multiple_of(weight, 16)
    u = entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(acc))
    v = entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc))
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    Q = size(table_ptr, Q_SIZE, layer, LAYERS)
    C, K = column_order(table_ptr, layer, LAYERS, PERMUTES)
    parts, blocks = scratch_ptr + entry(table_ptr, SCRATCH, layer, LAYERS), tl.cdiv(M, R)
    if Q % WIDE != 0:
        store_estimate_parts(
            weight, u, v, parts, block, blocks, M, N, C, Q, K, False, R, BLOCK_N, VECTOR_BLOCK
        )
    elif Q == N:
        N = multiple(N, WIDE)
        store_estimate_parts(
            weight, u, v, parts, block, blocks, M, N, C, N, K, True, R, BLOCK_N, VECTOR_BLOCK
        )
    else:
        N, Q = multiple(N, WIDE), multiple(Q, WIDE)
        store_estimate_parts(
            weight, u, v, parts, block, blocks, M, N, C, Q, K, False, R, BLOCK_N, VECTOR_BLOCK
        )


@triton.jit
def foreach_finish_estimate(
    table_ptr,
    out_ptr,  # each normalized weight, out
    state_ptr,  # each sigma, u and v, out
    scratch_ptr,
    eps,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    LEARNS: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """As ``finish_estimate``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST + 2, LAYERS)
    parts = scratch_ptr + entry(table_ptr, SCRATCH, layer, LAYERS)
    programs = tl.cdiv(size(table_ptr, M_SIZE, layer, LAYERS), R)
    sigma, u_factor, v_factor = estimated(parts, programs, eps, VECTOR_BLOCK)
    factor = layer_factor(table_ptr, layer, sigma, WEIGHT_TYPE, LAYERS, BOUND, SCALE, LEARNS)
    scale_layer(table_ptr, out_ptr, layer, block, factor, WEIGHT_TYPE, LAYERS, BLOCK)
    store_state(
        table_ptr,
        state_ptr,
        layer,
        block,
        sigma,
        u_factor,
        v_factor,
        LAYERS,
        BLOCK,
        VECTOR_BLOCK,
    )


@triton.jit
def foreach_divide_and_copy_state(
    table_ptr,
    out_ptr,  # each normalized weight, out
    state_ptr,  # each sigma, u and v, out
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    LEARNS: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """As ``divide_and_copy_state``, of every layer."""
    layer, block = layer_of(table_ptr, FIRST + 2, LAYERS)
    acc = state_ptr.dtype.element_ty
    sigma = tl.load(entry(table_ptr, SIGMA, layer, LAYERS).to(tl.pointer_type(acc)))
    factor = layer_factor(table_ptr, layer, sigma, WEIGHT_TYPE, LAYERS, BOUND, SCALE, LEARNS)
    scale_layer(table_ptr, out_ptr, layer, block, factor, WEIGHT_TYPE, LAYERS, BLOCK)
    store_state(table_ptr, state_ptr, layer, block, sigma, 1.0, 1.0, LAYERS, BLOCK, VECTOR_BLOCK)


@triton.jit
def store_state(
    table_ptr,
    state_ptr,
    layer,
    block,
    sigma,
    u_factor,
    v_factor,
    LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """sigma, and this block's part of u and v times their factors."""
    acc = state_ptr.dtype.element_ty
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    blocks = tl.cdiv(M.to(tl.int64) * N, BLOCK).to(tl.int32)
    if block == 0:
        tl.store(state_ptr + entry(table_ptr, NEW_SIGMA, layer, LAYERS), sigma)
    u = entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(acc))
    v = entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc))
    new_u = state_ptr + entry(table_ptr, NEW_U, layer, LAYERS)
    new_v = state_ptr + entry(table_ptr, NEW_V, layer, LAYERS)
    store_scaled(new_u, u, u_factor, block, blocks, M, VECTOR_BLOCK)
    store_scaled(new_v, v, v_factor, block, blocks, N, VECTOR_BLOCK)
