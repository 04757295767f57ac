"""sigma = u^T W v of u and v as they are, made unit: what evaluation uses."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..matrix_view import MatrixView
from . import launch
from .config import VECTOR_BLOCK, chunk_tile
from .indexing import multiple, reciprocal, square_root
from .power_step import row_products


@triton.jit
def row_block_dots(
    weight_ptr,  # [P, M, Q]
    u_ptr,  # [M]
    v_ptr,  # [N], logical
    dot_ptr,  # [programs], out
    M,
    N,
    C,
    FACTOR: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    PLAIN: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """This program's rows' share of u^T W v."""
    pid = tl.program_id(0)
    N = multiple(N, FACTOR)
    m = pid * R + tl.arange(0, R)
    t = row_products(weight_ptr, v_ptr, m, M, N, C, Q, K, PLAIN, R, BLOCK_N)
    u = tl.load(u_ptr + m, mask=m < M, other=0.0)
    # Rows past the last are zero in both; a NaN row must stay one.
    tl.store(dot_ptr + pid, tl.sum(u * t, axis=0))


@triton.jit
def finish_estimate(
    u_ptr,  # [M]
    v_ptr,  # [N]
    dot_ptr,  # [programs]
    unit_u_ptr,  # [M], out
    unit_v_ptr,  # [N], out
    sigma_ptr,  # [], out
    live_sigma_ptr,  # [], out too
    programs,
    M,
    N,
    eps,
    BLOCK: tl.constexpr,
):
    """u / |u|, v / |v| and sigma = (sum of dots) / (|u| |v|), norms at least eps; one program."""
    u_norm = norm_at_least(u_ptr, M, eps, BLOCK)
    v_norm = norm_at_least(v_ptr, N, eps, BLOCK)
    total = tl.zeros([BLOCK], dtype=dot_ptr.dtype.element_ty)
    for start in range(0, programs, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(dot_ptr + i, mask=i < programs, other=0.0)
    sigma = tl.sum(total, axis=0) * reciprocal(u_norm) * reciprocal(v_norm)
    tl.store(sigma_ptr, sigma)
    tl.store(live_sigma_ptr, sigma)
    store_scaled(unit_u_ptr, u_ptr, reciprocal(u_norm), M, BLOCK)
    store_scaled(unit_v_ptr, v_ptr, reciprocal(v_norm), N, BLOCK)


@triton.jit
def norm_at_least(x_ptr, size, eps, BLOCK: tl.constexpr):
    """The L2 norm of x, at least eps."""
    acc = x_ptr.dtype.element_ty
    total = tl.zeros([BLOCK], dtype=acc)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < size, other=0.0)
        total += x * x
    return tl.maximum(square_root(tl.sum(total, axis=0)), eps)


@triton.jit
def store_scaled(out_ptr, x_ptr, factor, size, BLOCK: tl.constexpr):
    """x * factor, [size]."""
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < size)
        tl.store(out_ptr + i, x * factor, mask=i < size)


def launch_estimate(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    eps: float,
    unit_u: Tensor,
    unit_v: Tensor,
    sigma: Tensor,
    live_sigma: Tensor,
) -> None:
    """Write the last four, of shapes (M,), (N,), () and (), in two launches."""
    M, N = view.M, view.N
    tile = chunk_tile(M, N, view.Q, u.element_size(), launch.warp_size(u.device))
    dots = u.new_empty(tile.programs)
    row_block_dots[(tile.programs,)](
        weight_ptr=weight,
        u_ptr=u,
        v_ptr=v,
        dot_ptr=dots,
        M=M,
        N=N,
        C=view.C,
        **launch.layout_of(view, N),
        R=tile.R,
        BLOCK_N=tile.BLOCK_N,
        num_warps=tile.num_warps,
    )
    finish_estimate[(1,)](
        u_ptr=u,
        v_ptr=v,
        dot_ptr=dots,
        unit_u_ptr=unit_u,
        unit_v_ptr=unit_v,
        sigma_ptr=sigma,
        live_sigma_ptr=live_sigma,
        programs=tile.programs,
        M=M,
        N=N,
        eps=eps,
        BLOCK=4 * VECTOR_BLOCK,
    )
