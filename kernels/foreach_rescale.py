"""What becomes of the weight of one layer among many once its sigma is known."""

from __future__ import annotations

import triton
import triton.language as tl

from .factor import load_factor
from .indexing import multiple
from .rescale import scale_block
from .table import LEARNED, M_SIZE, N_SIZE, OUT, WEIGHT, WIDE, entry, size


@triton.jit
def layer_factor(
    table_ptr,
    layer,
    sigma,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """What the layer's weight is multiplied by; its learned scale is of the weight's dtype."""
    if LEARNS:
        scale = entry(table_ptr, LEARNED, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
        return load_factor(sigma, scale, BOUND, SCALE)
    else:
        return load_factor(sigma, None, BOUND, SCALE)


@triton.jit
def scale_layer(
    table_ptr,
    out_ptr,
    layer,
    block,
    factor,
    WEIGHT_TYPE: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ``block``-th part of the layer's weight * factor."""
    M, N = size(table_ptr, M_SIZE, layer, LAYERS), size(table_ptr, N_SIZE, layer, LAYERS)
    numel = M.to(tl.int64) * N
    weight = entry(table_ptr, WEIGHT, layer, LAYERS).to(tl.pointer_type(WEIGHT_TYPE))
    weight = tl.multiple_of(weight, 16)
    out = tl.multiple_of(out_ptr + entry(table_ptr, OUT, layer, LAYERS), 16)
    whole = multiple(numel, WIDE)
    scale_block(weight, factor, out, block, whole, BLOCK)
    if block == 0:
        scale_block(weight + whole, factor, out + whole, block, numel - whole, WIDE)
