"""W / sigma with its u, v and sigma: three launches, or one where a program holds all of W."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..matrix_view import MatrixView
from . import launch
from .config import (
    ELEMENTWISE_BLOCK,
    SHARE_COLUMNS,
    SHARE_ROWS,
    VECTOR_BLOCK,
    SmallTile,
    ceil_div,
    chunk_tile,
    holds_whole_rows,
    known_factor,
    row_tile,
    small_tile,
    warps,
)
from .estimate import launch_estimate
from .finish import finish_iteration, reduce_partials
from .power_step import power_chunked, power_rows
from .rescale import launch_rescale
from .small import normalize_small


class Results(NamedTuple):
    """What the kernels write: fresh tensors, and the live buffers that get the same values."""

    weight_sn: Tensor
    u: Tensor
    v: Tensor
    sigma: Tensor
    live_u: Tensor
    live_v: Tensor
    live_sigma: Tensor


def normalize(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    n_power_iterations: int,
    eps: float,
    dtype: torch.dtype,
    buffers: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`snorm_triton.eager.normalize`."""
    fresh = (
        torch.empty_like(weight, dtype=dtype),
        torch.empty_like(u),
        torch.empty_like(v),
        u.new_empty(()),
    )
    live = (*fresh[1 : 4 - len(buffers)], *buffers)
    results = Results(*fresh, *live)
    with launch.on_device_of(weight):
        tile = small_tile(view.M, view.N, u.element_size(), launch.warp_size(u.device))
        if tile is not None:
            _normalize_small(weight, view, u, v, n_power_iterations, eps, tile, results)
        elif n_power_iterations > 0:
            _iterate(weight, view, u, v, n_power_iterations, results)
        else:
            launch_estimate(
                weight, view, u, v, eps, results.u, results.v, results.sigma, results.live_sigma
            )
            launch_rescale(weight, results.sigma, results.weight_sn)
    return fresh


def _normalize_small(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    n_power_iterations: int,
    eps: float,
    tile: SmallTile,
    results: Results,
) -> None:
    normalize_small[(1,)](
        weight_ptr=weight,
        u_ptr=u,
        v_ptr=v,
        out_ptr=results.weight_sn,
        new_u_ptr=results.u,
        new_v_ptr=results.v,
        new_sigma_ptr=results.sigma,
        live_u_ptr=results.live_u,
        live_v_ptr=results.live_v,
        live_sigma_ptr=results.live_sigma,
        n_power_iterations=n_power_iterations,
        eps=eps,
        M=view.M,
        N=view.N,
        C=view.C,
        **launch.layout_of(view, view.N),
        ITERATES=n_power_iterations > 0,
        BLOCK_M=tile.BLOCK_M,
        BLOCK_N=tile.BLOCK_N,
        num_warps=tile.num_warps,
    )


def _iterate(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    n_power_iterations: int,
    results: Results,
) -> None:
    """Three launches each iteration; the last writes the normalized weight too."""
    M, N, numel = view.M, view.N, weight.numel()
    itemsize, lanes = u.element_size(), launch.warp_size(u.device)
    capacity = M * results.weight_sn.element_size() // itemsize  # rows of N that the output holds
    if holds_whole_rows(view.P, view.Q, view.K, itemsize):
        power, tile = power_rows, row_tile(M, N, itemsize, lanes, max(1, capacity))
    else:
        power, tile = power_chunked, chunk_tile(M, N, view.Q, itemsize, lanes)
    programs, column_blocks = tile.programs, ceil_div(N, SHARE_COLUMNS)
    # The shares of s lie in the output's memory: it is written only once they have been read.
    partial = results.weight_sn if programs <= capacity else u.new_empty(programs, N)
    sizes = (M, programs, programs, N, column_blocks, column_blocks)
    scratch = u.new_empty(sum(sizes)).split(sizes)
    t, scale, square, s, column_scale, column_square = scratch
    for iteration in range(n_power_iterations):
        is_last = iteration == n_power_iterations - 1
        power[(programs,)](
            weight_ptr=weight,
            v_ptr=v,
            t_ptr=t,
            partial_ptr=partial,
            scale_ptr=scale,
            square_ptr=square,
            M=M,
            N=N,
            C=view.C,
            **launch.layout_of(view, view.N),
            R=tile.R,
            BLOCK_N=tile.BLOCK_N,
            num_warps=tile.num_warps,
        )
        reduce_partials[(column_blocks,)](
            partial_ptr=partial,
            scale_ptr=scale,
            s_ptr=s,
            column_scale_ptr=column_scale,
            column_square_ptr=column_square,
            programs=programs,
            N=N,
            FACTOR=known_factor(N),
            BLOCK=SHARE_COLUMNS,
            ROWS=SHARE_ROWS,
            num_warps=warps(SHARE_ROWS * SHARE_COLUMNS, itemsize, lanes),
        )
        elements, block = (numel, ELEMENTWISE_BLOCK) if is_last else (max(M, N), VECTOR_BLOCK)
        finish_iteration[(ceil_div(elements, block),)](
            t_ptr=t,
            scale_ptr=scale,
            square_ptr=square,
            s_ptr=s,
            column_scale_ptr=column_scale,
            column_square_ptr=column_square,
            u_ptr=u,
            v_ptr=v,
            new_u_ptr=results.u,
            new_v_ptr=results.v,
            new_sigma_ptr=results.sigma,
            live_u_ptr=results.live_u,
            live_v_ptr=results.live_v,
            live_sigma_ptr=results.live_sigma,
            weight_ptr=weight,
            out_ptr=results.weight_sn,
            programs=programs,
            column_blocks=column_blocks,
            numel=numel,
            M=M,
            N=N,
            C=view.C,
            FACTOR=known_factor(numel),
            K=view.K,
            RESCALES=is_last,
            BLOCK=block,
            VECTOR_BLOCK=VECTOR_BLOCK,
        )
        u, v = results.u, results.v
