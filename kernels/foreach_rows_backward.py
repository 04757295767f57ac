"""The gradients of the scaled rows of many weights in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from .indexing import multiple
from .scale_rows_backward import row_gradients
from .table import (
    FIRST,
    GRAD,
    M_SIZE,
    N_SIZE,
    NEW_U,
    OUT,
    Q_SIZE,
    SIGMA,
    WEIGHT,
    WIDE,
    U,
    entry,
    layer_of,
    size,
)


@triton.jit
def foreach_differentiate_rows(
    table_ptr,  # [FIELDS, LAYERS]: g at U, |v| at SIGMA; the gradient of g has its address at NEW_U
    norms_ptr,  # whatever it points to, in the dtype of |v|
    GRAD_TYPE: tl.constexpr,
    WEIGHT_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    NARROW: tl.constexpr,
    SECTOR: tl.constexpr,
    LINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As ``differentiate_rows``, of every layer, in tiles as ``config.together_rows`` says."""
    layer, block = layer_of(table_ptr, FIRST, LAYERS)
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    Q = size(table_ptr, Q_SIZE, layer, LAYERS)
    grad = entry(table_ptr, GRAD, layer, LAYERS).to(tl.pointer_type(GRAD_TYPE))
    v = entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    g = entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(G_TYPE))
    norms = entry(table_ptr, SIGMA, layer, LAYERS).to(norms_ptr.dtype)
    dv = entry(table_ptr, OUT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    dg = entry(table_ptr, NEW_U, layer, LAYERS).to(tl.pointer_type(G_TYPE))
    grad, v, dv = tl.multiple_of(grad, 16), tl.multiple_of(v, 16), tl.multiple_of(dv, 16)
    if Q == 1:
        row_gradients(grad, v, g, norms, dv, dg, block, M, N, 1, False, False, LINE, BLOCK // LINE)
    elif Q % WIDE == 0:
        differentiate_wide_runs(grad, v, g, norms, dv, dg, block, M, N, Q, NARROW, SECTOR, BLOCK)
    elif N <= BLOCK // NARROW:
        row_gradients(
            grad, v, g, norms, dv, dg, block, M, N, Q, False, True, NARROW, BLOCK // NARROW
        )
    else:
        row_gradients(
            grad, v, g, norms, dv, dg, block, M, N, Q, False, False, SECTOR, BLOCK // SECTOR
        )


@triton.jit
def differentiate_wide_runs(
    grad,
    v,
    g,
    norms,
    dv,
    dg,
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
            row_gradients(
                grad, v, g, norms, dv, dg, block, M, N, N, True, True, NARROW, BLOCK // NARROW
            )
        elif N <= BLOCK // SECTOR:
            row_gradients(
                grad, v, g, norms, dv, dg, block, M, N, N, True, True, SECTOR, BLOCK // SECTOR
            )
        elif N <= BLOCK // 4:
            row_gradients(grad, v, g, norms, dv, dg, block, M, N, N, True, True, 4, BLOCK // 4)
        elif N <= BLOCK // 2:
            row_gradients(grad, v, g, norms, dv, dg, block, M, N, N, True, True, 2, BLOCK // 2)
        else:
            row_gradients(grad, v, g, norms, dv, dg, block, M, N, N, True, False, 1, BLOCK)
    elif N <= BLOCK // SECTOR:
        row_gradients(
            grad, v, g, norms, dv, dg, block, M, N, Q, False, True, SECTOR, BLOCK // SECTOR
        )
    else:
        row_gradients(grad, v, g, norms, dv, dg, block, M, N, Q, False, False, 1, BLOCK)
