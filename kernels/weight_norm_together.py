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
from .parts import Layout, split
from .row_plan import Layer, RowPlan, column_of, plan_of, tile_rows
from .table import GRAD, NEW_U, OUT, SIGMA, Rows, rows_of
from .weight_norm import norms_dtype
from .weight_norm import scale_rows as of_one_weight
from .weight_norm import scale_rows_backward as gradients_of_one_weight


def scale_rows(calls: Sequence[RowScaling]) -> list[RowScaled]:
    """What :class:`RowScaled` says of each, of one device."""
    return grouped(calls, kind_of, _scale_rows, of_one_weight)


def scale_rows_backward(calls: Sequence[RowScalingGradient]) -> list[tuple[Tensor, Tensor]]:
    """The gradients of v, laid out as the weight is, and of g, of each."""
    return grouped(calls, _gradient_kind, _scale_rows_backward, gradients_of_one_weight)


def kind_of(call: RowScaling) -> Hashable:
    """What calls that share a launch have in common; None of one that goes alone."""
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
    weight = calls[0].weight
    layers = tuple([Layer(v.data_ptr(), g.data_ptr(), view) for v, view, g, _ in calls])
    plan = plan_of(layers, weight.device, norms_dtype(weight).itemsize)
    memory = memory_of(plan, calls[0])
    launch.in_order([launch_of(plan, calls[0])], memory)
    layouts = [Layout(v.shape, v.stride()) for v, *_ in calls]
    rows = torch.unsafe_split_with_sizes(memory["norms_ptr"], [call.view.M for call in calls])
    return list(map(RowScaled, split(memory["out_ptr"], plan.outs, layouts), rows))


def memory_of(plan: RowPlan, call: RowScaling) -> dict[str, Tensor]:
    """For the scaled weights of a plan, and the norms of all; of calls of this one's kind."""
    weight = call.weight
    return {
        "out_ptr": weight.new_empty(sum(plan.outs), dtype=call.dtype),
        "norms_ptr": weight.new_empty(plan.norms, dtype=norms_dtype(weight)),
    }


def launch_of(plan: RowPlan, call: RowScaling) -> launch.Launch:
    """The launch of a plan, of calls of this one's kind."""
    table = plan.table
    return launch.Launch(
        foreach_scale_rows,
        table.programs[0],
        ("out_ptr", "norms_ptr"),
        table_ptr=table.fields,
        **_arguments(table.layers, call.weight, call.g, norms_dtype(call.weight)),
    )


def _scale_rows_backward(calls: Sequence[RowScalingGradient]) -> list[tuple[Tensor, Tensor]]:
    results = [(torch.empty_like(call.weight), torch.empty_like(call.g)) for call in calls]
    grad, weight, *_, norms = calls[0]
    forwards = [RowScaling(v, view, g, v.dtype) for _, v, view, g, _ in calls]
    rows = gradient_rows(forwards, norms.element_size())
    for row, tensors in (
        (SIGMA, [call.norms for call in calls]),
        (GRAD, [call.grad for call in calls]),
        (OUT, [grad_v for grad_v, _ in results]),
        (NEW_U, [grad_g for _, grad_g in results]),
    ):
        rows.put(row.value, [tensor.data_ptr() for tensor in tensors])
    memory = {"table_ptr": rows.on(weight.device).fields, "norms_ptr": norms}
    launch.in_order([gradient_launch(rows, grad.dtype, forwards[0], norms.dtype)], memory)
    return results


def gradient_launch(
    rows: Rows, grad_dtype: torch.dtype, call: RowScaling, norms: torch.dtype
) -> launch.Launch:
    """The launch with these rows, of weights, gradients and norms of these dtypes."""
    return launch.Launch(
        foreach_differentiate_rows,
        rows.programs[0],
        ("table_ptr", "norms_ptr"),
        **_arguments(rows.layers, call.weight, call.g, norms),
        GRAD_TYPE=launch.TYPES[grad_dtype],
    )


def gradient_rows(calls: Sequence[RowScaling], norms_bytes: int) -> Rows:
    """The table but for the addresses of the norms, the gradients that come and those to be."""
    return rows_of(
        [
            column_of(view, norms_bytes)._replace(weight=weight.data_ptr(), u=g.data_ptr())
            for weight, view, g, _ in calls
        ]
    )


def _arguments(layers: int, weight: Tensor, g: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "WEIGHT_TYPE": launch.TYPES[weight.dtype],
        "G_TYPE": launch.TYPES[g.dtype],
        "LAYERS": layers,
        "NARROW": NARROW_ROWS,
        "SECTOR": SECTOR,
        "LINE": LINE,
        "BLOCK": together_block(dtype.itemsize),
        "num_warps": TOGETHER_THREADS // launch.warp_size(weight.device),
        **launch.ROUNDING,
    }
