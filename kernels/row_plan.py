"""Where the weights of a model whose rows are scaled, and what comes of them, lie."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ..ops import streams
from ..ops.matrix_view import MatrixView
from . import launch
from .config import ceil_div, together_rows
from .plan import OUT_UNIT
from .table import WIDE, Column, Table, sizes_of, upload


class Layer(NamedTuple):
    """Where a layer's weight and the norms of its rows, g, lie, and how it is read."""

    weight: int
    g: int
    view: MatrixView


class RowPlan(NamedTuple):
    """The table of a model's weights, and the elements of their results."""

    table: Table
    outs: tuple[int, ...]  # of each
    norms: int  # of all


def plan_of(layers: tuple[Layer, ...], device: torch.device, norms_bytes: int) -> RowPlan:
    """The plan of these addresses, kept from call to call as :func:`.plan.plan_of` says."""
    build = _planned.__wrapped__ if launch.is_capturing(device) else _planned
    return build(layers, device, streams.current(device), norms_bytes)


@lru_cache(maxsize=256)
def _planned(
    layers: tuple[Layer, ...],
    device: torch.device,
    stream: object,  # by which it is kept
    norms_bytes: int,
) -> RowPlan:
    norms = 0
    outs: list[int] = []
    columns = []
    for layer in layers:
        columns.append(
            column_of(layer.view, norms_bytes)._replace(
                weight=layer.weight, u=layer.g, out=sum(outs), new_u=norms
            )
        )
        outs.append(ceil_div(layer.view.M * layer.view.N, OUT_UNIT) * OUT_UNIT)
        norms += layer.view.M
    return RowPlan(upload(columns, device), tuple(outs), norms)


def tile_rows(view: MatrixView, norms_bytes: int) -> int:
    """The rows of a weight among many that one program takes."""
    return together_rows(view.N, view.Q, view.Q % WIDE.value == 0, norms_bytes)


def column_of(view: MatrixView, norms_bytes: int) -> Column:
    """How a layer is read, and the programs that scale its rows; no addresses yet."""
    return Column(
        weight=0,
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
        programs=(ceil_div(view.M, tile_rows(view, norms_bytes)), 0, 0),
    )
