"""The launches for many weights, however many they are, of each combination of dtypes.

A power iteration is three launches, an evaluation two, a replay one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops.calls import Call, Evaluate, Iterate, Normalized, Replay, Step
from . import launch
from .config import (
    ELEMENTWISE_BLOCK,
    SHARE_COLUMNS,
    SHARE_ROWS,
    VECTOR_BLOCK,
    RowTile,
    foreach_tile,
    warps,
)
from .foreach import foreach_finish, foreach_power, foreach_reduce
from .foreach_evaluate import (
    foreach_divide_and_copy_state,
    foreach_estimate_parts,
    foreach_finish_estimate,
)
from .grouping import fits_table, grouped, learns_alike, numbers_of
from .normalize import normalize as of_one_weight
from .parts import Layout, split, split_states
from .plan import Layer, plan_of, table_apart
from .table import Table


def normalize(calls: Sequence[Call], apart: bool = False) -> list[Normalized]:
    """As :class:`snorm_triton.ops.backend.Backend` says: of each kind together.

    The results lie in one piece of memory, or ``apart``, which takes a table at each call.
    """
    return grouped(calls, kind_of, partial(_normalize, apart=apart), of_one_weight)


def kind_of(call: Call) -> Hashable:
    """What calls share that are launched together; None of one that goes alone."""
    weight, _, u, v, step, dtype, rescaling = call
    if not fits_table(weight) or not learns_alike(weight, rescaling):
        return None
    alike = weight.dtype, u.dtype, dtype, *numbers_of(rescaling).values()
    if isinstance(step, Replay):
        return *alike, "replay"
    if isinstance(step, Evaluate):
        return *alike, step.eps
    live = step.live
    # Buffers of another dtype than u and v, which are copies of them then, are not live.
    if live is not None and not (live[0] is u and live[1] is v and live[2].dtype == u.dtype):
        return None
    return *alike, step.n, live is None


Memory = Mapping[str, Tensor]
"""What launches for many weights write: ``out_ptr``, the first normalized weight, others at places
from there; ``state_ptr``, likewise u, v and sigma; ``partial_ptr``, shares of s; ``scratch_ptr``.
"""


def _memory(
    layers: tuple[Layer, ...], calls: Sequence[Call], dtype: torch.dtype, apart: bool
) -> tuple[Table, Memory, list[Normalized]]:
    weight, _, u, *_ = calls[0]
    device = weight.device
    if apart:
        normalized = [
            Normalized(
                torch.empty_like(w, dtype=dtype),
                torch.empty_like(u),
                torch.empty_like(v),
                u.new_empty(()),
                is_live(calls[0].step),
            )
            for w, _, u, v, *_ in calls
        ]
        table, sizes = table_apart(layers, normalized, device)
        out, state, *_ = normalized[0]
        shares = u.new_empty(sizes.shares)
    else:
        table, _, sizes = plan_of(layers, device, dtype.itemsize, u.element_size())
        out = shares = weight.new_empty(sizes.out, dtype=dtype)
        state = u.new_empty(sizes.state)
        normalized = _parts(sizes.outs, out, state, calls)
    memory = {"out_ptr": out, "state_ptr": state, "partial_ptr": shares}
    return table, memory | {"scratch_ptr": u.new_empty(sizes.scratch)}, normalized


def _parts(
    outs: Sequence[int], out: Tensor, state: Tensor, calls: Sequence[Call]
) -> list[Normalized]:
    layouts = [Layout(call.weight.shape, call.weight.stride()) for call in calls]
    states = split_states(state, [call.view for call in calls])
    is_written = is_live(calls[0].step)
    return [
        Normalized(weight_sn, *of_layer, is_written)
        for weight_sn, of_layer in zip(split(out, outs, layouts), states, strict=True)
    ]


def is_live(step: Step) -> bool:
    """Whether the launches write the live u, v and sigma, too."""
    return isinstance(step, Iterate) and step.live is not None


def _normalize(calls: Sequence[Call], apart: bool) -> list[Normalized]:
    layers = tuple(map(layer_of, calls))
    table, memory, normalized = _memory(layers, calls, calls[0].dtype, apart)
    launch.in_order(launches_of(table, calls[0]), memory)
    return normalized


def launches_of(table: Table, call: Call) -> list[launch.Launch]:
    """The launches for weights of which one is called like this, in their order."""
    weight, _, u, _, step, *_ = call
    arguments: dict[str, Any] = {
        "table_ptr": table.fields,
        "LAYERS": table.layers,
        "WEIGHT_TYPE": launch.TYPES[weight.dtype],
        **launch.ROUNDING,
    }
    numbers = numbers_of(call.rescaling)
    if isinstance(step, Replay):
        return [_replay(table, arguments, numbers)]
    tile = foreach_tile(u.element_size(), launch.warp_size(weight.device))
    if isinstance(step, Evaluate):
        return _estimate(table, tile, step.eps, arguments, numbers)
    launches = []
    for iteration in range(step.n):
        arguments["GOES_ON"] = iteration > 0
        launches += _power_and_reduce(table, tile, u, arguments)
        last = {"RESCALES": iteration == step.n - 1, "LIVE": is_live(step), **numbers}
        launches.append(_finish(table, tile, arguments | last))
    return launches


def layer_of(call: Call) -> Layer:
    """Where what a call takes lies."""
    weight, view, u, v, step, _, rescaling = call
    sigma = 0
    if isinstance(step, Replay):
        sigma = step.sigma.data_ptr()
    elif isinstance(step, Iterate) and step.live is not None:
        sigma = step.live[2].data_ptr()
    learned = 0 if rescaling.learned is None else rescaling.learned.data_ptr()
    return Layer(weight.data_ptr(), u.data_ptr(), v.data_ptr(), sigma, learned, view)


def _power_and_reduce(
    table: Table, tile: RowTile, u: Tensor, arguments: dict[str, Any]
) -> list[launch.Launch]:
    power, reduce, _ = table.programs
    lanes = launch.warp_size(u.device)
    return [
        launch.Launch(
            foreach_power,
            power,
            ("state_ptr", "partial_ptr", "scratch_ptr"),
            **arguments,
            PERMUTES=table.permutes,
            R=tile.R,
            BLOCK_N=tile.BLOCK_N,
            num_warps=tile.num_warps,
        ),
        launch.Launch(
            foreach_reduce,
            reduce,
            ("partial_ptr", "scratch_ptr"),
            table_ptr=table.fields,
            LAYERS=table.layers,
            R=tile.R,
            BLOCK=SHARE_COLUMNS,
            ROWS=SHARE_ROWS,
            num_warps=warps(SHARE_ROWS * SHARE_COLUMNS, u.element_size(), lanes),
            **launch.ROUNDING,
        ),
    ]


def _finish(table: Table, tile: RowTile, arguments: dict[str, Any]) -> launch.Launch:
    return launch.Launch(
        foreach_finish,
        table.programs[2],
        ("out_ptr", "state_ptr", "scratch_ptr"),
        **arguments,
        PERMUTES=table.permutes,
        R=tile.R,
        BLOCK=ELEMENTWISE_BLOCK,
        VECTOR_BLOCK=VECTOR_BLOCK,
        SHARE_COLUMNS=SHARE_COLUMNS,
    )


def _estimate(
    table: Table, tile: RowTile, eps: float, arguments: dict[str, Any], numbers: dict[str, Any]
) -> list[launch.Launch]:
    parts, _, finish = table.programs
    return [
        launch.Launch(
            foreach_estimate_parts,
            parts,
            ("scratch_ptr",),
            **arguments,
            PERMUTES=table.permutes,
            R=tile.R,
            BLOCK_N=tile.BLOCK_N,
            VECTOR_BLOCK=VECTOR_BLOCK,
            num_warps=tile.num_warps,
        ),
        launch.Launch(
            foreach_finish_estimate,
            finish,
            ("out_ptr", "state_ptr", "scratch_ptr"),
            **arguments,
            R=tile.R,
            VECTOR_BLOCK=VECTOR_BLOCK,
            eps=eps,
            **numbers,
            BLOCK=ELEMENTWISE_BLOCK,
        ),
    ]


def _replay(table: Table, arguments: dict[str, Any], numbers: dict[str, Any]) -> launch.Launch:
    return launch.Launch(
        foreach_divide_and_copy_state,
        table.programs[2],
        ("out_ptr", "state_ptr"),
        **arguments,
        **numbers,
        BLOCK=ELEMENTWISE_BLOCK,
        VECTOR_BLOCK=VECTOR_BLOCK,
    )
