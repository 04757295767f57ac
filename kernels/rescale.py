"""W / sigma for a u, v and sigma that are known."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.calls import Normalized, State
from ..ops.matrix_view import MatrixView
from . import launch
from .config import ELEMENTWISE_BLOCK, VECTOR_BLOCK, ceil_div, hidden_factor
from .estimate import store_scaled
from .indexing import divisor_of, multiple, reciprocal


@triton.jit
def divide_and_copy_state(
    weight_ptr,  # [numel], in memory order
    u_ptr,  # [M]
    v_ptr,  # [N]
    sigma_ptr,  # []
    out_ptr,  # [numel], out
    new_u_ptr,  # [M], out
    new_v_ptr,  # [N], out
    new_sigma_ptr,  # [], out
    numel,
    M,
    N,
    FACTOR: tl.constexpr,  # divides numel
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """weight / sigma, and copies of u, v and sigma."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    sigma = tl.load(sigma_ptr)
    divide_block(weight_ptr, sigma, out_ptr, block, multiple(numel, FACTOR), BLOCK)
    if block == 0:
        tl.store(new_sigma_ptr, sigma)
    store_scaled(new_u_ptr, u_ptr, 1.0, block, blocks, M, VECTOR_BLOCK)
    store_scaled(new_v_ptr, v_ptr, 1.0, block, blocks, N, VECTOR_BLOCK)


@triton.jit
def divide_block(weight_ptr, sigma, out_ptr, block, numel, BLOCK: tl.constexpr):
    """One block of weight / sigma. The last use of the weight."""
    inverse = reciprocal(divisor_of(sigma))
    offset = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w = tl.load(weight_ptr + offset, mask=offset < numel, eviction_policy="evict_first")
    scaled = w.to(sigma.dtype) * inverse
    tl.store(out_ptr + offset, scaled.to(out_ptr.dtype.element_ty), mask=offset < numel)


def replay(weight: Tensor, view: MatrixView, state: State, dtype: torch.dtype) -> Normalized:
    """W / sigma, and copies of u, v and sigma, which a later iteration may overwrite."""
    out = torch.empty_like(weight, dtype=dtype)
    u, v, sigma = state
    new_u, new_v, new_sigma = (torch.empty_like(x) for x in state)
    with launch.on_device_of(weight):
        launch.run(
            divide_and_copy_state,
            ceil_div(weight.numel(), ELEMENTWISE_BLOCK),
            weight_ptr=weight,
            u_ptr=u,
            v_ptr=v,
            sigma_ptr=sigma,
            out_ptr=out,
            new_u_ptr=new_u,
            new_v_ptr=new_v,
            new_sigma_ptr=new_sigma,
            numel=weight.numel(),
            M=view.M,
            N=view.N,
            FACTOR=hidden_factor(weight.numel()),
            BLOCK=ELEMENTWISE_BLOCK,
            VECTOR_BLOCK=VECTOR_BLOCK,
            **launch.ROUNDING,
        )
    return Normalized(out, new_u, new_v, new_sigma)
