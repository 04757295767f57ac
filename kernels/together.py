"""The launches for many weights, however many they are, of each combination of dtypes.

A power iteration is three launches, an evaluation two, a replay one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.calls import Call, Evaluate, Iterate, Normalized, Replay, Step
from . import launch
from .config import ELEMENTWISE_BLOCK, SHARE_COLUMNS, SHARE_ROWS, VECTOR_BLOCK, foreach_tile, warps
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


class Memory(NamedTuple):
    """What launches for many weights write, and what they write it with."""

    table: Table
    out: Tensor  # the first normalized weight: others lie at places from there
    state: Tensor  # likewise u, v and sigma
    shares: Tensor  # of s
    scratch: Tensor


def _memory(
    layers: tuple[Layer, ...], calls: Sequence[Call], dtype: torch.dtype, apart: bool
) -> tuple[Memory, list[Normalized]]:
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
    scratch = u.new_empty(sizes.scratch)
    return Memory(table, out, state, shares, scratch), normalized


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
    memory, normalized = _memory(tuple(map(layer_of, calls)), calls, calls[0].dtype, apart)
    launch_all(memory, calls[0])
    return normalized


def launch_all(memory: Memory, call: Call) -> None:
    """The launches for weights of which one is called like this."""
    weight, step, numbers = call.weight, call.step, numbers_of(call.rescaling)
    with launch.on_device_of(weight):
        if isinstance(step, Iterate):
            _iterate(memory, step.n, weight.dtype, numbers, is_live(step))
        elif isinstance(step, Evaluate):
            _estimate(memory, step.eps, weight.dtype, numbers)
        else:
            _replay(memory, weight.dtype, numbers)


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


def _iterate(
    memory: Memory,
    n_power_iterations: int,
    dtype: torch.dtype,
    numbers: dict[str, Any],
    live: bool,
) -> None:
    table, out, state, _, scratch = memory
    arguments: dict[str, Any] = {
        "table_ptr": table.fields,
        "scratch_ptr": scratch,
        "LAYERS": table.layers,
        "R": foreach_tile(state.element_size(), launch.warp_size(out.device)).R,
        **launch.ROUNDING,
    }
    of_all = {"state_ptr": state, "WEIGHT_TYPE": launch.TYPES[dtype], "PERMUTES": table.permutes}
    for iteration in range(n_power_iterations):
        of_all["GOES_ON"] = iteration > 0
        _power_and_reduce(memory, arguments, of_all)
        launch.run(
            foreach_finish,
            table.programs[2],
            **arguments,
            **of_all,
            out_ptr=out,
            RESCALES=iteration == n_power_iterations - 1,
            LIVE=live,
            **numbers,
            BLOCK=ELEMENTWISE_BLOCK,
            VECTOR_BLOCK=VECTOR_BLOCK,
            SHARE_COLUMNS=SHARE_COLUMNS,
        )


def _power_and_reduce(memory: Memory, arguments: dict[str, Any], of_all: dict[str, Any]) -> None:
    (power, reduce, _), itemsize = memory.table.programs, memory.state.element_size()
    lanes = launch.warp_size(memory.state.device)
    tile = foreach_tile(itemsize, lanes)
    launch.run(
        foreach_power,
        power,
        **arguments,
        **of_all,
        partial_ptr=memory.shares,
        BLOCK_N=tile.BLOCK_N,
        num_warps=tile.num_warps,
    )
    launch.run(
        foreach_reduce,
        reduce,
        **arguments,
        partial_ptr=memory.shares,
        BLOCK=SHARE_COLUMNS,
        ROWS=SHARE_ROWS,
        num_warps=warps(SHARE_ROWS * SHARE_COLUMNS, itemsize, lanes),
    )


def _estimate(memory: Memory, eps: float, dtype: torch.dtype, numbers: dict[str, Any]) -> None:
    table, out, state, _, scratch = memory
    tile = foreach_tile(state.element_size(), launch.warp_size(out.device))
    parts, _, finish = table.programs
    arguments: dict[str, Any] = {
        "table_ptr": table.fields,
        "scratch_ptr": scratch,
        "WEIGHT_TYPE": launch.TYPES[dtype],
        "LAYERS": table.layers,
        "R": tile.R,
        "VECTOR_BLOCK": VECTOR_BLOCK,
        **launch.ROUNDING,
    }
    launch.run(
        foreach_estimate_parts,
        parts,
        **arguments,
        PERMUTES=table.permutes,
        BLOCK_N=tile.BLOCK_N,
        num_warps=tile.num_warps,
    )
    launch.run(
        foreach_finish_estimate,
        finish,
        **arguments,
        out_ptr=out,
        state_ptr=state,
        eps=eps,
        **numbers,
        BLOCK=ELEMENTWISE_BLOCK,
    )


def _replay(memory: Memory, dtype: torch.dtype, numbers: dict[str, Any]) -> None:
    launch.run(
        foreach_divide_and_copy_state,
        memory.table.programs[2],
        table_ptr=memory.table.fields,
        out_ptr=memory.out,
        state_ptr=memory.state,
        WEIGHT_TYPE=launch.TYPES[dtype],
        LAYERS=memory.table.layers,
        **numbers,
        BLOCK=ELEMENTWISE_BLOCK,
        VECTOR_BLOCK=VECTOR_BLOCK,
        **launch.ROUNDING,
    )
