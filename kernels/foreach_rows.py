"""The rows of many weights scaled to given norms in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from .indexing import multiple
from .scale_rows import scale_row_block
from .table import (
    FIRST,
    M_SIZE,
    N_SIZE,
    NEW_U,
    OUT,
    Q_SIZE,
    WEIGHT,
    WIDE,
    U,
    entry,
    layer_of,
    size,
)


@triton.jit
def foreach_scale_rows(
    table_ptr,  # [FIELDS, LAYERS]: g at U
    out_ptr,  # each scaled weight, out
    norms_ptr,  # |v| of each at NEW_U, out
    WEIGHT_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    NARROW: tl.constexpr,
    SECTOR: tl.constexpr,
    LINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As ``scale_rows_at_once``, of every layer, in tiles as ``config.together_rows`` says."""
    layer, block = layer_of(table_ptr, FIRST, LAYERS)
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    Q = size(table_ptr, Q_SIZE, layer, LAYERS)
    v = entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    g = entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(G_TYPE))
    norms = norms_ptr + entry(table_ptr, NEW_U, layer, LAYERS)
    v = tl.multiple_of(v, 16)
    out = tl.multiple_of(out_ptr + entry(table_ptr, OUT, layer, LAYERS), 16)
    if Q == 1:
        scale_row_block(v, g, out, norms, block, M, N, 1, False, False, LINE, BLOCK // LINE)
    elif Q % WIDE == 0:
        scale_wide_runs(v, g, out, norms, block, M, N, Q, NARROW, SECTOR, BLOCK)
    elif N <= BLOCK // NARROW:
        scale_row_block(v, g, out, norms, block, M, N, Q, False, True, NARROW, BLOCK // NARROW)
    else:
        scale_row_block(v, g, out, norms, block, M, N, Q, False, False, SECTOR, BLOCK // SECTOR)


@triton.jit
def scale_wide_runs(
    v,
    g,
    out,
    norms,
    block,
    M,
    N,
    Q,
    NARROW: tl.constexpr,
    SECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ``block``-th tile of a layer whose runs are multiples of WIDE."""
    N, Q = multiple(N, WIDE), multiple(Q, WIDE)
    if Q == N:
        if N <= BLOCK // NARROW:
            scale_row_block(v, g, out, norms, block, M, N, N, True, True, NARROW, BLOCK // NARROW)
        elif N <= BLOCK // SECTOR:
            scale_row_block(v, g, out, norms, block, M, N, N, True, True, SECTOR, BLOCK // SECTOR)
        elif N <= BLOCK // 4:
            scale_row_block(v, g, out, norms, block, M, N, N, True, True, 4, BLOCK // 4)
        elif N <= BLOCK // 2:
            scale_row_block(v, g, out, norms, block, M, N, N, True, True, 2, BLOCK // 2)
        else:
            scale_row_block(v, g, out, norms, block, M, N, N, True, False, 1, BLOCK)
    elif N <= BLOCK // SECTOR:
        scale_row_block(v, g, out, norms, block, M, N, Q, False, True, SECTOR, BLOCK // SECTOR)
    else:
        scale_row_block(v, g, out, norms, block, M, N, Q, False, False, 1, BLOCK)
