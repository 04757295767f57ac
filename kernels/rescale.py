"""W / sigma for a sigma that is known."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .config import ELEMENTWISE_BLOCK, ceil_div, hidden_factor
from .indexing import divisor_of, multiple, reciprocal


@triton.jit
def divide_by_sigma(
    weight_ptr,  # [numel], in memory order
    sigma_ptr,  # []
    out_ptr,  # [numel], out
    numel,
    FACTOR: tl.constexpr,  # divides numel
    BLOCK: tl.constexpr,
):
    """weight / sigma, where a zero sigma divides by one."""
    divide_block(
        weight_ptr, tl.load(sigma_ptr), out_ptr, tl.program_id(0), multiple(numel, FACTOR), BLOCK
    )


@triton.jit
def divide_block(weight_ptr, sigma, out_ptr, block, numel, BLOCK: tl.constexpr):
    """One block of weight / sigma. The last use of the weight."""
    inverse = reciprocal(divisor_of(sigma))
    offset = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w = tl.load(weight_ptr + offset, mask=offset < numel, eviction_policy="evict_first")
    scaled = w.to(sigma.dtype) * inverse
    tl.store(out_ptr + offset, scaled.to(out_ptr.dtype.element_ty), mask=offset < numel)


def rescale(weight: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """As :func:`snorm_triton.eager.rescale`."""
    out = torch.empty_like(weight, dtype=dtype)
    with launch.on_device_of(weight):
        launch_rescale(weight, sigma, out)
    return out


def launch_rescale(weight: Tensor, sigma: Tensor, out: Tensor) -> None:
    """Write ``weight / sigma`` to ``out``, laid out as the weight, on the current device."""
    divide_by_sigma[(ceil_div(weight.numel(), ELEMENTWISE_BLOCK),)](
        weight_ptr=weight,
        sigma_ptr=sigma,
        out_ptr=out,
        numel=weight.numel(),
        FACTOR=hidden_factor(weight.numel()),
        BLOCK=ELEMENTWISE_BLOCK,
    )
