"""W / sigma with its u, v and sigma: three launches, or one where a program holds all of W."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.calls import Evaluate, Iterate, Normalized, Replay, State, Step
from ..ops.matrix_view import MatrixView
from ..ops.rescaling import PLAIN, Rescaling
from . import launch
from .config import (
    SHARE_COLUMNS,
    SHARE_ROWS,
    VECTOR_BLOCK,
    RowTile,
    SmallTile,
    ceil_div,
    chunk_tile,
    finish_block,
    hidden_factor,
    holds_whole_rows,
    row_tile,
    small_tile,
    warps,
)
from .estimate import estimate_parts, finish_estimate
from .finish import finish_iteration, reduce_partials
from .power_step import power_chunked, power_rows
from .rescale import replay
from .small import normalize_small


def normalize(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    step: Step,
    dtype: torch.dtype,
    rescaling: Rescaling = PLAIN,
) -> Normalized:
    """W / sigma of one weight, as :class:`snorm_triton.ops.backend.Backend` says."""
    if isinstance(step, Replay):
        return replay(weight, view, State(u, v, step.sigma), dtype, rescaling)
    out = torch.empty_like(weight, dtype=dtype)
    fresh = State(torch.empty_like(u), torch.empty_like(v), u.new_empty(()))
    live = step.live if isinstance(step, Iterate) else None
    # The live state gets the same values; where there is none the fresh is written twice.
    live_u, live_v, live_sigma = live or fresh
    arguments = {
        "weight_ptr": weight,
        "out_ptr": out,
        "new_u_ptr": fresh.u,
        "new_v_ptr": fresh.v,
        "new_sigma_ptr": fresh.sigma,
        "live_u_ptr": live_u,
        "live_v_ptr": live_v,
        "live_sigma_ptr": live_sigma,
        "M": view.M,
        "N": view.N,
        "C": view.C,
        **launch.factor_of(rescaling),
    }
    with launch.on_device_of(weight):
        tile = small_tile(view.M, view.N, u.element_size(), launch.warp_size(u.device))
        if tile is not None:
            _in_one_launch(view, u, v, step, arguments, tile)
        elif isinstance(step, Iterate):
            _iterate(view, u, v, step.n, arguments)
        else:
            _estimate(weight, view, u, v, step.eps, rescaling, out, fresh)
    return Normalized(out, *fresh, is_written=live is not None)


def _in_one_launch(
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    step: Iterate | Evaluate,
    arguments: dict[str, Any],
    tile: SmallTile,
) -> None:
    n, eps = (step.n, 0.0) if isinstance(step, Iterate) else (0, step.eps)
    launch.run(
        normalize_small,
        1,
        **arguments,
        u_ptr=u,
        v_ptr=v,
        n_power_iterations=n,
        eps=eps,
        **launch.layout_of(view, view.N),
        ITERATES=n > 0,
        BLOCK_M=tile.BLOCK_M,
        BLOCK_N=tile.BLOCK_N,
        num_warps=tile.num_warps,
        **launch.ROUNDING,
    )


def _estimate(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    eps: float,
    rescaling: Rescaling,
    out: Tensor,
    fresh: State,
) -> None:
    """Write ``out`` and ``fresh``, in two launches."""
    M, N = view.M, view.N
    tile = chunk_tile(M, N, view.Q, u.element_size(), launch.warp_size(u.device))
    parts = u.new_empty(3 * tile.programs)
    launch.run(
        estimate_parts,
        tile.programs,
        weight_ptr=weight,
        u_ptr=u,
        v_ptr=v,
        parts_ptr=parts,
        M=M,
        N=N,
        C=view.C,
        **launch.layout_of(view, N),
        R=tile.R,
        BLOCK_N=tile.BLOCK_N,
        VECTOR_BLOCK=VECTOR_BLOCK,
        num_warps=tile.num_warps,
        **launch.ROUNDING,
    )
    taken = {"weight_ptr": weight, "u_ptr": u, "v_ptr": v, "parts_ptr": parts}
    numbers = {"programs": tile.programs, "M": M, "N": N, "eps": eps}
    _finish_estimate(taken | numbers | launch.factor_of(rescaling), out, fresh)


def _finish_estimate(taken: dict[str, Any], out: Tensor, fresh: State) -> None:
    numel, itemsize = out.numel(), fresh.u.element_size()
    block = finish_block(itemsize)
    launch.run(
        finish_estimate,
        ceil_div(numel, block),
        **taken,
        out_ptr=out,
        unit_u_ptr=fresh.u,
        unit_v_ptr=fresh.v,
        sigma_ptr=fresh.sigma,
        numel=numel,
        FACTOR=hidden_factor(numel),
        BLOCK=block,
        VECTOR_BLOCK=VECTOR_BLOCK,
        num_warps=warps(block, itemsize, launch.warp_size(out.device)),
        **launch.ROUNDING,
    )


def _iterate(
    view: MatrixView, u: Tensor, v: Tensor, n_power_iterations: int, arguments: dict[str, Any]
) -> None:
    """Three launches each iteration; the last writes the normalized weight too."""
    weight, out = arguments["weight_ptr"], arguments["out_ptr"]
    M, N = view.M, view.N
    itemsize, lanes = u.element_size(), launch.warp_size(u.device)
    capacity = M * out.element_size() // itemsize  # rows of N that the output holds
    power, tile, staged = _power_kernel(view, weight, itemsize, capacity)
    programs, column_blocks = tile.programs, ceil_div(N, SHARE_COLUMNS)
    # The shares of s lie in the output's memory: it is written only once they have been read.
    partial = out if programs <= capacity else u.new_empty(programs, N)
    scratch = u.new_empty(M + N + 2 * (programs + column_blocks))
    shares = {"partial_ptr": partial, "scratch_ptr": scratch, "M": M, "N": N, **launch.ROUNDING}
    for iteration in range(n_power_iterations):
        launch.run(
            power,
            programs,
            **shares,
            weight_ptr=weight,
            v_ptr=v,
            C=view.C,
            **launch.layout_of(view, N),
            R=tile.R,
            BLOCK_N=tile.BLOCK_N,
            num_warps=tile.num_warps,
            **staged,
        )
        launch.run(
            reduce_partials,
            column_blocks,
            **shares,
            programs=programs,
            FACTOR=hidden_factor(N),
            BLOCK=SHARE_COLUMNS,
            ROWS=SHARE_ROWS,
            num_warps=warps(SHARE_ROWS * SHARE_COLUMNS, itemsize, lanes),
        )
        is_last = iteration == n_power_iterations - 1
        _finish(view, u, v, arguments, scratch, programs, is_last)
        u, v = arguments["new_u_ptr"], arguments["new_v_ptr"]


def _power_kernel(
    view: MatrixView, weight: Tensor, itemsize: int, capacity: int
) -> tuple[Any, RowTile, dict[str, int]]:
    """The kernel of the power step, its tile, and what it takes beside."""
    M, N, lanes = view.M, view.N, launch.warp_size(weight.device)
    if not holds_whole_rows(view.P, view.Q, view.K, itemsize):
        return power_chunked, chunk_tile(M, N, view.Q, itemsize, lanes), {}
    limits = launch.shared_memory(weight.device), max(1, capacity)
    tile = row_tile(M, N, itemsize, weight.element_size(), lanes, *limits)
    return power_rows, tile, {"STAGES": tile.STAGES}


def _finish(
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    arguments: dict[str, Any],
    scratch: Tensor,
    programs: int,
    rescales: bool,
) -> None:
    numel, itemsize, lanes = view.M * view.N, u.element_size(), launch.warp_size(u.device)
    elements, block = max(view.M, view.N), VECTOR_BLOCK
    if rescales:
        elements, block = numel, finish_block(itemsize)
    launch.run(
        finish_iteration,
        ceil_div(elements, block),
        **arguments,
        scratch_ptr=scratch,
        u_ptr=u,
        v_ptr=v,
        programs=programs,
        numel=numel,
        FACTOR=hidden_factor(numel),
        K=view.K,
        RESCALES=rescales,
        BLOCK=block,
        VECTOR_BLOCK=VECTOR_BLOCK,
        SHARE_COLUMNS=SHARE_COLUMNS,
        num_warps=warps(block, itemsize, lanes),
        **launch.ROUNDING,
    )
