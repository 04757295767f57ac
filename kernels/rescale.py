"""W / sigma, and its gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..matrix_view import MatrixView
from . import launch
from .config import (
    DOT_BLOCK,
    ELEMENTWISE_BLOCK,
    PERSISTENT_PROGRAMS,
    apply_tile,
    ceil_div,
    next_power_of_two,
    warps,
)
from .indexing import divisor_of, logical_column, reciprocal


@triton.jit
def divide_by_sigma(
    weight_ptr,  # [numel], in memory order
    sigma_ptr,  # []
    out_ptr,  # [numel], out
    numel,
    BLOCK: tl.constexpr,
):
    """weight / sigma, where a zero sigma divides by one."""
    sigma = divisor_of(tl.load(sigma_ptr))
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w = tl.load(weight_ptr + offset, mask=offset < numel).to(sigma.dtype)
    scaled = w * reciprocal(sigma)
    tl.store(out_ptr + offset, scaled.to(out_ptr.dtype.element_ty), mask=offset < numel)


@triton.jit
def grad_dot(
    grad_ptr,  # [numel]
    weight_ptr,  # [numel]
    partial_ptr,  # [programs], out
    numel,
    BLOCK: tl.constexpr,
):
    """This program's share of <grad, weight>; a program takes every num_programs-th block."""
    pid = tl.program_id(0).to(tl.int64)
    acc = partial_ptr.dtype.element_ty
    total = tl.zeros([BLOCK], dtype=acc)
    for start in range(pid * BLOCK, numel, tl.num_programs(0).to(tl.int64) * BLOCK):
        offset = start + tl.arange(0, BLOCK)
        g = tl.load(grad_ptr + offset, mask=offset < numel, other=0.0).to(acc)
        w = tl.load(weight_ptr + offset, mask=offset < numel, other=0.0).to(acc)
        total += g * w
    tl.store(partial_ptr + pid, tl.sum(total, axis=0))


@triton.jit
def grad_apply(
    grad_ptr,  # [rows, columns]
    grad_sigma_ptr,  # [], read where HAS_GRAD_SIGMA
    partial_ptr,  # [programs]
    u_ptr,  # [M]
    v_ptr,  # [N], logical
    sigma_ptr,  # []
    out_ptr,  # [rows, columns], out
    programs,
    rows,
    columns,
    C,
    Q: tl.constexpr,
    K: tl.constexpr,
    HAS_GRAD_SIGMA: tl.constexpr,
    PROGRAMS: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(grad - (<grad, W> / sigma - grad_sigma sigma) u v^T) / sigma, over memory in two dimensions.

    Memory is (M, N) where P = 1, said by Q = 0, and (P, M * Q) elsewhere.
    """
    i = tl.arange(0, PROGRAMS)
    inner = tl.sum(tl.load(partial_ptr + i, mask=i < programs, other=0.0), axis=0)
    estimate = tl.load(sigma_ptr)
    sigma = divisor_of(estimate)
    inverse = reciprocal(sigma)
    # A weight whose sigma is zero was divided by 1, whatever it is.
    coefficient = tl.where(sigma == estimate, inner * inverse, 0.0)
    if HAS_GRAD_SIGMA:
        coefficient -= tl.load(grad_sigma_ptr) * sigma

    blocks = tl.cdiv(columns, BLOCK_N)
    pid = tl.program_id(0)
    row = (pid // blocks) * R + tl.arange(0, R)
    column = (pid % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    if Q == 0:
        u = tl.load(u_ptr + row, mask=row < rows, other=0.0)[:, None]
        v = tl.load(v_ptr + logical_column(column, C, K), mask=column < columns, other=0.0)[None, :]
    else:
        u = tl.load(u_ptr + column // Q, mask=column < columns, other=0.0)[None, :]
        n = row[:, None] * Q + (column % Q)[None, :]
        v = tl.load(v_ptr + logical_column(n, C, K), mask=inside, other=0.0)
    offset = row.to(tl.int64)[:, None] * columns + column[None, :]
    g = tl.load(grad_ptr + offset, mask=inside).to(sigma.dtype)
    grad_weight = (g - coefficient * u * v) * inverse
    tl.store(out_ptr + offset, grad_weight.to(out_ptr.dtype.element_ty), mask=inside)


def rescale(weight: Tensor, sigma: Tensor) -> Tensor:
    """As :func:`snorm_triton.eager.rescale`."""
    out = torch.empty_like(weight)
    with launch.on_device_of(weight):
        divide_by_sigma[(ceil_div(weight.numel(), ELEMENTWISE_BLOCK),)](
            weight_ptr=weight,
            sigma_ptr=sigma,
            out_ptr=out,
            numel=weight.numel(),
            BLOCK=ELEMENTWISE_BLOCK,
        )
    return out


def rescale_backward(
    grad: Tensor,
    grad_sigma: Tensor | None,
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
) -> Tensor:
    """As :func:`snorm_triton.eager.rescale_backward`."""
    numel, lanes, itemsize = weight.numel(), launch.warp_size(weight.device), u.element_size()
    out = torch.empty_like(weight)
    programs = min(ceil_div(numel, DOT_BLOCK), PERSISTENT_PROGRAMS)
    partial = u.new_empty(programs)
    whole_rows = view.P == 1
    rows, columns = (view.M, view.Q) if whole_rows else (view.P, view.M * view.Q)
    tile = apply_tile(rows, columns, itemsize, lanes)
    with launch.on_device_of(weight):
        grad_dot[(programs,)](
            grad_ptr=grad,
            weight_ptr=weight,
            partial_ptr=partial,
            numel=numel,
            BLOCK=DOT_BLOCK,
            num_warps=warps(DOT_BLOCK, itemsize, lanes) * 2,
        )
        grad_apply[(tile.programs,)](
            grad_ptr=grad,
            grad_sigma_ptr=sigma if grad_sigma is None else grad_sigma,
            partial_ptr=partial,
            u_ptr=u,
            v_ptr=v,
            sigma_ptr=sigma,
            out_ptr=out,
            programs=programs,
            rows=rows,
            columns=columns,
            C=view.C,
            Q=0 if whole_rows else view.Q,
            K=view.K,
            HAS_GRAD_SIGMA=grad_sigma is not None,
            PROGRAMS=next_power_of_two(PERSISTENT_PROGRAMS),
            R=tile.R,
            BLOCK_N=tile.BLOCK_N,
            num_warps=tile.num_warps,
        )
    return out
