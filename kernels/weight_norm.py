"""g v / |v| by rows of one weight: one launch, or two where rows are few and long."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    norms = weight.new_empty(view.M, dtype=norms_dtype(weight))
    launches, parts = _forward(Kind(view, weight.device, norms.dtype))
    memory = {"weight_ptr": weight, "g_ptr": g, "out_ptr": out, "norms_ptr": norms}
    if parts:
        memory["parts_ptr"] = norms.new_empty(2, view.M, parts)
    launch.in_order(launches, memory)
    return RowScaled(out, norms)


def scale_rows_backward(
    grad: Tensor, weight: Tensor, view: MatrixView, g: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of v, laid out as the weight is, and of g."""
    out, out_g = torch.empty_like(weight), torch.empty_like(g)
    launches, parts = _backward(Kind(view, weight.device, norms.dtype))
    memory = {"weight_ptr": weight, "g_ptr": g, "norms_ptr": norms, "grad_ptr": grad}
    memory |= {"out_ptr": out, "out_g_ptr": out_g}
    if parts:
        memory["parts_ptr"] = norms.new_empty(view.M, parts)
    launch.in_order(launches, memory)
    return out, out_g


def norms_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which a weight's rows are summed."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


class Kind(NamedTuple):
    """Weights whose rows are scaled in the same launches."""

    view: MatrixView
    device: torch.device
    norms_dtype: torch.dtype


class Kernel(NamedTuple):
    """What is launched, and the tensors that it takes."""

    function: Any
    tensors: tuple[str, ...]


Launches = tuple[list[launch.Launch], int]
"""One of rows that a program holds; or two, the first of which leaves so many parts of a row."""


@launch.once_for_each
def _forward(kind: Kind) -> Launches:
    taken = "weight_ptr", "g_ptr", "out_ptr", "norms_ptr"
    return _launches(
        kind,
        Kernel(scale_rows_at_once, taken),
        Kernel(sum_squares, ("weight_ptr", "parts_ptr")),
        Kernel(scale_rows_of_parts, (*taken, "parts_ptr")),
    )


@launch.once_for_each
def _backward(kind: Kind) -> Launches:
    inputs = "weight_ptr", "grad_ptr", "norms_ptr"
    taken = *inputs, "g_ptr", "out_ptr", "out_g_ptr"
    return _launches(
        kind,
        Kernel(differentiate_rows, taken),
        Kernel(sum_products, (*inputs, "parts_ptr")),
        Kernel(differentiate_rows_of_parts, (*taken, "parts_ptr")),
    )


def _launches(kind: Kind, whole: Kernel, first: Kernel, second: Kernel) -> Launches:
    view, itemsize, lanes = kind.view, kind.norms_dtype.itemsize, launch.warp_size(kind.device)
    tile = scaling_tile(view.P, view.M, view.Q, itemsize, lanes)
    is_whole = not is_split(tile, view.N)
    if not is_whole:
        tile = split_tile(view.P, view.M, view.Q, itemsize, lanes)
    shared = {
        "M": view.M,
        "N": view.N,
        **launch.rows_of(view),
        "R": tile.R,
        "BLOCK_N": tile.BLOCK_N,
        "num_warps": tile.num_warps,
        **launch.ROUNDING,
    }
    if is_whole:
        shared["WHOLE"] = tile.BLOCK_N >= view.N
        return [launch.Launch(whole.function, tile.programs, whole.tensors, **shared)], 0
    row_blocks = ceil_div(view.M, tile.R)
    parts = shared["parts"] = tile.programs // row_blocks
    blocks = row_blocks * ceil_div(view.N, tile.BLOCK_N)
    return [
        launch.Launch(first.function, tile.programs, first.tensors, **shared),
        launch.Launch(
            second.function, blocks, second.tensors, **shared, PARTS=next_power_of_two(parts)
        ),
    ], parts
