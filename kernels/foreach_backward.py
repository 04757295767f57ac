"""The gradient of many weights in two launches."""

from __future__ import annotations

import triton
import triton.language as tl

from .factor import load_factors
from .indexing import multiple
from .rescale_backward import dot_share, grad_block
from .table import (
    FIRST,
    GRAD,
    LEARNED,
    M_SIZE,
    N_SIZE,
    NEW_SIGMA,
    OUT,
    Q_SIZE,
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
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    LEARNS: tl.constexpr,
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
    inner = tl.sum(share, axis=0)
    if LEARNS:
        scale = entry(table_ptr, LEARNED, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
        factor, coefficient, grad_scale = load_factors(inner, sigma, scale, BOUND, SCALE)
        if block == 0:
            into = entry(table_ptr, NEW_SIGMA, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
            tl.store(into, grad_scale.to(WEIGHT_TYPE))
    else:
        factor, coefficient, _ = load_factors(inner, sigma, None, BOUND, SCALE)
    grad = entry(table_ptr, GRAD, layer, LAYERS).to(tl.pointer_type(GRAD_TYPE))
    u = entry(table_ptr, U, layer, LAYERS).to(tl.pointer_type(acc))
    v = entry(table_ptr, V, layer, LAYERS).to(tl.pointer_type(acc))
    out = entry(table_ptr, OUT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    grad, out = tl.multiple_of(grad, 16), tl.multiple_of(out, 16)
    Q = size(table_ptr, Q_SIZE, layer, LAYERS)
    C, K = column_order(table_ptr, layer, LAYERS, PERMUTES)
    P = N // Q
    if Q % WIDE != 0:
        grad_block(grad, u, v, out, factor, coefficient, block, P, M * Q, C, Q, K, False, 1, BLOCK)
    elif Q == N:
        N = multiple(N, WIDE)
        grad_block(grad, u, v, out, factor, coefficient, block, M, N, C, N, K, True, R, BLOCK // R)
    else:
        Q = multiple(Q, WIDE)
        grad_block(grad, u, v, out, factor, coefficient, block, P, M * Q, C, Q, K, False, 1, BLOCK)
