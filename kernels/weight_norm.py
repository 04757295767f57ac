"""g v / |v| by rows of one weight: one launch, or two where rows are few and long."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.matrix_view import MatrixView
from ..ops.row_scaling import RowScaled
from . import launch
from .config import ceil_div, is_split, next_power_of_two, scaling_tile, split_tile
from .scale_rows import scale_rows_at_once, scale_rows_of_parts, sum_squares
from .scale_rows_backward import differentiate_rows, differentiate_rows_of_parts, sum_products


def scale_rows(weight: Tensor, view: MatrixView, g: Tensor, dtype: torch.dtype) -> RowScaled:
    """As :class:`snorm_triton.ops.row_scaling.RowScaled` says, of one weight."""
    out = torch.empty_like(weight, dtype=dtype)
    norms = torch.empty(view.M, dtype=norms_dtype(weight), device=weight.device)
    itemsize, lanes = norms.element_size(), launch.warp_size(weight.device)
    arguments: dict[str, Any] = {"g_ptr": g, "out_ptr": out, "norms_ptr": norms}
    tile = scaling_tile(view.P, view.M, view.Q, itemsize, lanes)
    with launch.on_device_of(weight):
        if is_split(tile, view.N):
            _scale_in_two_launches(weight, view, arguments)
        else:
            launch.run(
                scale_rows_at_once,
                tile.programs,
                **arguments,
                weight_ptr=weight,
                M=view.M,
                N=view.N,
                **launch.rows_of(view),
                WHOLE=tile.BLOCK_N >= view.N,
                R=tile.R,
                BLOCK_N=tile.BLOCK_N,
                num_warps=tile.num_warps,
                **launch.ROUNDING,
            )
    return RowScaled(out, norms)


def scale_rows_backward(
    grad: Tensor, weight: Tensor, view: MatrixView, g: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of v, laid out as the weight is, and of g."""
    out, out_g = torch.empty_like(weight), torch.empty_like(g)
    itemsize, lanes = norms.element_size(), launch.warp_size(weight.device)
    arguments: dict[str, Any] = {"g_ptr": g, "out_ptr": out, "out_g_ptr": out_g}
    tile = scaling_tile(view.P, view.M, view.Q, itemsize, lanes)
    with launch.on_device_of(weight):
        if is_split(tile, view.N):
            _differentiate_in_two_launches(grad, weight, view, norms, arguments)
        else:
            launch.run(
                differentiate_rows,
                tile.programs,
                **arguments,
                grad_ptr=grad,
                weight_ptr=weight,
                norms_ptr=norms,
                M=view.M,
                N=view.N,
                **launch.rows_of(view),
                WHOLE=tile.BLOCK_N >= view.N,
                R=tile.R,
                BLOCK_N=tile.BLOCK_N,
                num_warps=tile.num_warps,
                **launch.ROUNDING,
            )
    return out, out_g


def norms_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which a weight's rows are summed."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _scale_in_two_launches(weight: Tensor, view: MatrixView, results: dict[str, Any]) -> None:
    norms = results["norms_ptr"]
    shared, programs, blocks = _split(weight, view, norms.element_size())
    parts = norms.new_empty(2, view.M, shared["parts"])
    launch.run(sum_squares, programs, **shared, parts_ptr=parts)
    launch.run(
        scale_rows_of_parts,
        blocks,
        **shared,
        **results,
        parts_ptr=parts,
        PARTS=next_power_of_two(shared["parts"]),
    )


def _differentiate_in_two_launches(
    grad: Tensor, weight: Tensor, view: MatrixView, norms: Tensor, results: dict[str, Any]
) -> None:
    shared, programs, blocks = _split(weight, view, norms.element_size())
    parts = norms.new_empty(view.M, shared["parts"])
    shared |= {"grad_ptr": grad, "norms_ptr": norms, "parts_ptr": parts}
    launch.run(sum_products, programs, **shared)
    launch.run(
        differentiate_rows_of_parts,
        blocks,
        **shared,
        **results,
        PARTS=next_power_of_two(shared["parts"]),
    )


def _split(weight: Tensor, view: MatrixView, itemsize: int) -> tuple[dict[str, Any], int, int]:
    """What both launches take, and the programs of each."""
    lanes = launch.warp_size(weight.device)
    tile = split_tile(view.P, view.M, view.Q, itemsize, lanes)
    row_blocks = ceil_div(view.M, tile.R)
    shared = {
        "weight_ptr": weight,
        "parts": tile.programs // row_blocks,
        "M": view.M,
        "N": view.N,
        **launch.rows_of(view),
        "R": tile.R,
        "BLOCK_N": tile.BLOCK_N,
        "num_warps": tile.num_warps,
        **launch.ROUNDING,
    }
    return shared, tile.programs, row_blocks * ceil_div(view.N, tile.BLOCK_N)
