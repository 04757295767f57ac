"""One power iteration of many weights, and their gradient: three launches and two."""

from __future__ import annotations

import triton
import triton.language as tl

from .finish import norms, reduce_columns, store_vectors
from .indexing import divisor_of, reciprocal
from .power_step import row_block_products
from .rescale_backward import dot_share, factors, grad_block
from .table import (
    C_SIZE,
    FIRST,
    GRAD,
    GRAD_SIGMA,
    K_SIZE,
    M_SIZE,
    N_SIZE,
    OUT,
    OUT_UNIT,
    Q_SIZE,
    SCRATCH,
    SIGMA,
    STATE,
    WEIGHT,
    U,
    V,
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
    Q, K = size(table_ptr, Q_SIZE, layer, LAYERS), size(table_ptr, K_SIZE, layer, LAYERS)
    row_block_products(
        weight,
        v,
        partial.to(tl.pointer_type(acc), bitcast=True),
        scratch_ptr + entry(table_ptr, SCRATCH, layer, LAYERS),
        block,
        M,
        N,
        size(table_ptr, C_SIZE, layer, LAYERS),
        Q,
        K,
        False,
        R,
        BLOCK_N,
    )


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
    reduce_columns(
        partial.to(tl.pointer_type(scratch_ptr.dtype.element_ty), bitcast=True),
        scratch_ptr + entry(table_ptr, SCRATCH, layer, LAYERS),
        block,
        tl.cdiv(M, R),
        M,
        N,
        BLOCK,
        ROWS,
    )


@triton.jit
def foreach_finish(
    table_ptr,
    out_ptr,  # the outputs' memory
    state_ptr,  # sigmas [LAYERS], then each layer's u and v, out
    scratch_ptr,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
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
    inverse = reciprocal(divisor_of(sigma))
    weight = entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    out = out_ptr + entry(table_ptr, OUT, layer, LAYERS) * OUT_UNIT
    # Weights and outputs start at multiples of 16 bytes; what follows the last whole 16 elements
    # is kept apart, so that the rest moves in the widest loads.
    whole = numel // 16 * 16
    offset = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    weight, out = tl.multiple_of(weight, 16), tl.multiple_of(out, 16)
    w = tl.load(weight + offset, mask=offset < whole, eviction_policy="evict_first")
    scaled = (w.to(acc) * inverse).to(out_ptr.dtype.element_ty)
    tl.store(out + offset, scaled, mask=offset < whole)
    if block == 0:
        rest = whole + tl.arange(0, 16)
        last = tl.load(weight + rest, mask=rest < numel).to(acc) * inverse
        tl.store(out + rest, last.to(out_ptr.dtype.element_ty), mask=rest < numel)
        tl.store(state_ptr + layer, sigma)
        tl.store(entry(table_ptr, SIGMA, layer, LAYERS).to(tl.pointer_type(acc)), sigma)
    u = entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(acc))
    v = entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc))
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
        size(table_ptr, C_SIZE, layer, LAYERS),
        size(table_ptr, K_SIZE, layer, LAYERS),
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
    share = dot_share(
        entry(table_ptr, GRAD, layer, LAYERS).to(tl.pointer_type(GRAD_TYPE)),
        entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE)),
        block,
        tl.minimum(tl.cdiv(numel, BLOCK), PROGRAMS),
        numel,
        partial_ptr.dtype.element_ty,
        BLOCK,
    )
    tl.store(partial_ptr + layer * PROGRAMS + block, share)


@triton.jit
def foreach_grad_apply(
    table_ptr,
    partial_ptr,  # [LAYERS, PROGRAMS]
    GRAD_TYPE: tl.constexpr,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    HAS_GRAD_SIGMA: tl.constexpr,
    PROGRAMS: tl.constexpr,
    DOT_BLOCK: tl.constexpr,
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
    inverse, coefficient = factors(
        tl.sum(share, axis=0),
        entry(table_ptr, SIGMA, layer, LAYERS).to(tl.pointer_type(acc)),
        entry(table_ptr, GRAD_SIGMA, layer, LAYERS).to(tl.pointer_type(acc)),
        HAS_GRAD_SIGMA,
    )
    Q = size(table_ptr, Q_SIZE, layer, LAYERS)
    grad_block(
        entry(table_ptr, GRAD, layer, LAYERS).to(tl.pointer_type(GRAD_TYPE)),
        entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(acc)),
        entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc)),
        entry(table_ptr, OUT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE)),
        inverse,
        coefficient,
        block,
        N // Q,
        M * Q,
        size(table_ptr, C_SIZE, layer, LAYERS),
        Q,
        size(table_ptr, K_SIZE, layer, LAYERS),
        False,
        1,
        BLOCK,
    )
