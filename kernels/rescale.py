"""W / sigma for a u, v and sigma that are known."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.calls import Normalized, State
from ..ops.matrix_view import MatrixView
from ..ops.rescaling import Rescaling
from . import launch
from .config import ELEMENTWISE_BLOCK, VECTOR_BLOCK, ceil_div, hidden_factor
from .estimate import store_scaled
from .factor import load_factor
from .indexing import multiple

_KNOWN = "u_ptr", "v_ptr", "sigma_ptr"
_NEW = "new_u_ptr", "new_v_ptr", "new_sigma_ptr"


@triton.jit
def divide_and_copy_state(
    weight_ptr,  # [numel], in memory order
    u_ptr,  # [M]
    v_ptr,  # [N]
    sigma_ptr,  # []
    scale_ptr,  # [1], or None
    out_ptr,  # [numel], out
    new_u_ptr,  # [M], out
    new_v_ptr,  # [N], out
    new_sigma_ptr,  # [], out
    numel,
    M,
    N,
    FACTOR: tl.constexpr,  # divides numel
    BOUND: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR_BLOCK: tl.constexpr,
):
    """weight / sigma, and copies of u, v and sigma."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    sigma = tl.load(sigma_ptr)
    factor = load_factor(sigma, scale_ptr, BOUND, SCALE)
    scale_block(weight_ptr, factor, out_ptr, block, multiple(numel, FACTOR), BLOCK)
    if block == 0:
        tl.store(new_sigma_ptr, sigma)
    store_scaled(new_u_ptr, u_ptr, 1.0, block, blocks, M, VECTOR_BLOCK)
    store_scaled(new_v_ptr, v_ptr, 1.0, block, blocks, N, VECTOR_BLOCK)


@triton.jit
def scale_block(weight_ptr, factor, out_ptr, block, numel, BLOCK: tl.constexpr):
    """One block of weight * factor. The last use of the weight."""
    offset = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w = tl.load(weight_ptr + offset, mask=offset < numel, eviction_policy="evict_first")
    scaled = w.to(factor.dtype) * factor
    tl.store(out_ptr + offset, scaled.to(out_ptr.dtype.element_ty), mask=offset < numel)


def replay(
    weight: Tensor, view: MatrixView, state: State, dtype: torch.dtype, rescaling: Rescaling
) -> Normalized:
    """W / sigma, and copies of u, v and sigma, which a later iteration may overwrite."""
    fresh = State(*map(torch.empty_like, state))
    out = torch.empty_like(weight, dtype=dtype)
    memory = {"weight_ptr": weight, "out_ptr": out}
    memory |= zip(_KNOWN, state, strict=True)
    memory |= zip(_NEW, fresh, strict=True)
    bound, scale, learned = rescaling
    if learned is not None:
        memory["scale_ptr"] = learned
    kind = Kind(view, weight.device, bound, scale, learned is not None)
    launch.in_order(_launches(kind), memory)
    return Normalized(out, *fresh)


class Kind(NamedTuple):
    """Weights that are rescaled in the same launch."""

    view: MatrixView
    device: torch.device
    bound: float
    scale: float
    learns: bool  # a scale


@launch.once_for_each
def _launches(kind: Kind) -> list[launch.Launch]:
    M, N = kind.view.M, kind.view.N
    learned = ("scale_ptr",) if kind.learns else ()
    return [
        launch.Launch(
            divide_and_copy_state,
            ceil_div(M * N, ELEMENTWISE_BLOCK),
            ("weight_ptr", "out_ptr", *_KNOWN, *_NEW, *learned),
            **({} if kind.learns else {"scale_ptr": None}),
            numel=M * N,
            M=M,
            N=N,
            FACTOR=hidden_factor(M * N),
            BOUND=kind.bound,
            SCALE=kind.scale,
            BLOCK=ELEMENTWISE_BLOCK,
            VECTOR_BLOCK=VECTOR_BLOCK,
            **launch.ROUNDING,
        )
    ]
