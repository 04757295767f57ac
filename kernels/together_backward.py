"""The launches for the gradients of many weights: two, for each combination of dtypes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.calls import GradientCall, Gradients
from ..ops.matrix_view import MatrixView
from ..ops.rescaling import Rescaling
from . import launch
from .config import DOT_BLOCK, DOT_PROGRAMS, ELEMENTWISE_BLOCK, FOREACH_ROWS, ceil_div
from .foreach_backward import foreach_grad_apply, foreach_grad_dot
from .gradient import rescale_backward as of_one_weight
from .grouping import fits_table, grouped, learns_alike, numbers_of
from .table import (
    GRAD,
    LEARNED,
    NEW_SIGMA,
    OUT,
    SIGMA,
    WIDE,
    Column,
    Rows,
    Table,
    U,
    V,
    rows_of,
    sizes_of,
)


def rescale_backward(calls: Sequence[GradientCall]) -> list[Gradients]:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return grouped(calls, _kind, _rescale_backward, of_one_weight)


def _kind(call: GradientCall) -> Hashable:
    grad, weight = call.grad, call.weight
    if not fits_table(grad, weight) or not learns_alike(weight, call.rescaling):
        return None
    return grad.dtype, weight.dtype, call.u.dtype, *numbers_of(call.rescaling).values()


def _rescale_backward(calls: Sequence[GradientCall]) -> list[Gradients]:
    outs = [torch.empty_like(call.weight) for call in calls]
    grad, weight, _, u, *_, rescaling = calls[0]
    rows = gradient_rows([call.weight for call in calls], [call.view for call in calls])
    found = [
        (U, [call.u for call in calls]),
        (V, [call.v for call in calls]),
        (SIGMA, [call.sigma for call in calls]),
        (OUT, outs),
        (GRAD, [call.grad for call in calls]),
    ]
    of_scales: list[Any] = [None] * len(calls)
    if rescaling.learned is not None:  # as in all
        learned = [call.rescaling.learned for call in calls if call.rescaling.learned is not None]
        of_scales = list(map(torch.empty_like, learned))
        found += [(LEARNED, learned), (NEW_SIGMA, of_scales)]
    for row, tensors in found:
        rows.put(row.value, [tensor.data_ptr() for tensor in tensors])
    table = rows.on(weight.device)
    launches = launches_of(rows, grad.dtype, weight, rescaling)
    launch.in_order(launches, memory_of(table, u))
    return list(map(Gradients, outs, of_scales))


def launches_of(
    rows: Rows, grad_dtype: torch.dtype, weight: Tensor, rescaling: Rescaling
) -> list[launch.Launch]:
    """Both launches with these rows, of weights and gradients of these dtypes."""
    arguments: dict[str, Any] = {
        "GRAD_TYPE": launch.TYPES[grad_dtype],
        "WEIGHT_TYPE": launch.TYPES[weight.dtype],
        "LAYERS": rows.layers,
        "PROGRAMS": DOT_PROGRAMS,
        "num_warps": 8,
        **launch.ROUNDING,
    }
    dot, apply, _ = rows.programs
    varying = "table_ptr", "partial_ptr"
    return [
        launch.Launch(foreach_grad_dot, dot, varying, **arguments, BLOCK=DOT_BLOCK),
        launch.Launch(
            foreach_grad_apply,
            apply,
            varying,
            **arguments,
            PERMUTES=rows.permutes,
            **numbers_of(rescaling),
            DOT_BLOCK=DOT_BLOCK,
            R=FOREACH_ROWS,
            BLOCK=ELEMENTWISE_BLOCK,
        ),
    ]


def memory_of(table: Table, u: Tensor) -> dict[str, Tensor]:
    """What the launches take and write: of the dtype of ``u``, which is that of the state."""
    return {
        "table_ptr": table.fields,
        "partial_ptr": u.new_empty(table.layers, DOT_PROGRAMS),
    }


def gradient_rows(weights: Sequence[Tensor], views: Sequence[MatrixView]) -> Rows:
    """The table but for the addresses of u, v, sigma, the gradients that come and those to be."""
    columns = []
    for weight, view in zip(weights, views, strict=True):
        blocks = min(ceil_div(weight.numel(), DOT_BLOCK), DOT_PROGRAMS)
        column = Column(
            weight=weight.data_ptr(),
            u=0,
            v=0,
            sigma=0,
            out=0,
            grad=0,
            new_u=0,
            new_v=0,
            new_sigma=0,
            shares=0,
            scratch=0,
            **sizes_of(view),
            learned=0,
            programs=(blocks, _apply_tiles(view), 0),
        )
        columns.append(column)
    return rows_of(columns)


def _apply_tiles(view: MatrixView) -> int:
    """The programs of ``foreach_grad_apply``, which takes memory in two dimensions as it likes."""
    if view.P == 1 and view.Q % WIDE.value == 0:
        columns = ELEMENTWISE_BLOCK // FOREACH_ROWS
        return ceil_div(view.M, FOREACH_ROWS) * ceil_div(view.N, columns)
    return view.P * ceil_div(view.M * view.Q, ELEMENTWISE_BLOCK)
