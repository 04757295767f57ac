"""g v / |v| by rows of many weights: one launch for each combination of dtypes, one for gradients.

Weights of few long rows go alone: a program of such rows would outlast all others.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.matrix_view import MatrixView
from ..ops.row_scaling import RowScaled, RowScaling, RowScalingGradient
from . import launch
from .config import LINE, NARROW_ROWS, SECTOR, TOGETHER_THREADS, outlasts, together_block
from .foreach_rows import foreach_scale_rows
from .foreach_rows_backward import foreach_differentiate_rows
from .grouping import fits_table, grouped
from .parts import split
from .row_plan import Rows, column_of, plan_of, tile_rows
from .table import Table, upload
from .together import TYPES
from .weight_norm import norms_dtype
from .weight_norm import scale_rows as of_one_weight
from .weight_norm import scale_rows_backward as gradients_of_one_weight


def scale_rows(calls: Sequence[RowScaling]) -> list[RowScaled]:
    """What :class:`RowScaled` says of each, of one device."""
    return grouped(calls, _kind, _scale_rows, of_one_weight)


def scale_rows_backward(calls: Sequence[RowScalingGradient]) -> list[tuple[Tensor, Tensor]]:
    """The gradients of v, laid out as the weight is, and of g, of each."""
    return grouped(calls, _gradient_kind, _scale_rows_backward, gradients_of_one_weight)


def _kind(call: RowScaling) -> Hashable:
    weight, view, g, dtype = call
    if not fits_table(weight) or _outlasts(view, norms_dtype(weight)):
        return None
    return weight.dtype, g.dtype, dtype


def _gradient_kind(call: RowScalingGradient) -> Hashable:
    grad, weight, view, g, norms = call
    if not fits_table(grad, weight) or _outlasts(view, norms.dtype):
        return None
    return grad.dtype, weight.dtype, g.dtype


def _outlasts(view: MatrixView, dtype: torch.dtype) -> bool:
    return outlasts(view.M, view.N, tile_rows(view, dtype.itemsize))


def _scale_rows(calls: Sequence[RowScaling]) -> list[RowScaled]:
    weight, _, g, dtype = calls[0]
    of_norms = norms_dtype(weight)
    layers = tuple([Rows(v.data_ptr(), g.data_ptr(), view) for v, view, g, _ in calls])
    plan = plan_of(layers, weight.device, of_norms.itemsize)
    out = weight.new_empty(sum(plan.outs), dtype=dtype)
    norms = weight.new_empty(plan.norms, dtype=of_norms)
    with launch.on_device_of(weight):
        launch.run(
            foreach_scale_rows,
            plan.table.programs[0],
            **_arguments(plan.table, weight, g, of_norms),
            out_ptr=out,
            norms_ptr=norms,
        )
    shapes = [(v.shape, v.stride()) for v, *_ in calls]
    rows = torch.unsafe_split_with_sizes(norms, [call.view.M for call in calls])
    return list(map(RowScaled, split(out, plan.outs, shapes), rows))


def _scale_rows_backward(calls: Sequence[RowScalingGradient]) -> list[tuple[Tensor, Tensor]]:
    grad, weight, _, g, norms = calls[0]
    results = [(torch.empty_like(call.weight), torch.empty_like(call.g)) for call in calls]
    table = _gradient_table(calls, results)
    with launch.on_device_of(weight):
        launch.run(
            foreach_differentiate_rows,
            table.programs[0],
            **_arguments(table, weight, g, norms.dtype),
            norms_ptr=norms,
            GRAD_TYPE=TYPES[grad.dtype],
        )
    return results


def _gradient_table(
    calls: Sequence[RowScalingGradient], results: Sequence[tuple[Tensor, Tensor]]
) -> Table:
    columns = [
        column_of(view, norms.element_size())._replace(
            weight=weight.data_ptr(),
            u=g.data_ptr(),
            sigma=norms.data_ptr(),
            out=grad_v.data_ptr(),
            grad=grad.data_ptr(),
            new_u=grad_g.data_ptr(),
        )
        for (grad, weight, view, g, norms), (grad_v, grad_g) in zip(calls, results, strict=True)
    ]
    return upload(columns, calls[0].weight.device)


def _arguments(table: Table, weight: Tensor, g: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "table_ptr": table.fields,
        "WEIGHT_TYPE": TYPES[weight.dtype],
        "G_TYPE": TYPES[g.dtype],
        "LAYERS": table.layers,
        "NARROW": NARROW_ROWS,
        "SECTOR": SECTOR,
        "LINE": LINE,
        "BLOCK": together_block(dtype.itemsize),
        "num_warps": TOGETHER_THREADS // launch.warp_size(weight.device),
        **launch.ROUNDING,
    }
