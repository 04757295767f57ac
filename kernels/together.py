"""The launches for many weights of one device and dtype, however many they are.

A power iteration is three launches, a gradient two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..matrix_view import MatrixView
from . import launch
from .config import (
    DOT_BLOCK,
    DOT_PROGRAMS,
    ELEMENTWISE_BLOCK,
    FOREACH_ROWS,
    SHARE_COLUMNS,
    SHARE_ROWS,
    VECTOR_BLOCK,
    ceil_div,
    foreach_tile,
    warps,
)
from .foreach import (
    foreach_finish,
    foreach_grad_apply,
    foreach_grad_dot,
    foreach_power,
    foreach_reduce,
)
from .gradient import rescale_backward
from .normalize import normalize
from .table import OUT_UNIT, WIDE, Column, Table, upload

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
Normalized = tuple[Tensor, Tensor, Tensor, Tensor]


class Layer(NamedTuple):
    """Where a layer's weight and live state lie, and how it is read."""

    weight: int
    u: int
    v: int
    sigma: int
    view: MatrixView


class Plan(NamedTuple):
    """The table of a power iteration, and the elements of memory it takes."""

    table: Table
    outs: tuple[int, ...]  # place of each output
    states: tuple[int, ...]  # place of each fresh u, then v
    out_size: int
    state_size: int
    scratch_size: int


def foreach_normalize(calls: Sequence[tuple[Any, ...]]) -> list[Normalized]:
    """``normalize`` of each, together those that iterate equally often and update buffers."""
    if launch.is_capturing(calls[0][0].device):
        return [normalize(*call) for call in calls]
    alike: dict[int, list[int]] = {}  # by the number of iterations
    for i, call in enumerate(calls):
        if _joins(*call):
            alike.setdefault(call[4], []).append(i)
    results: dict[int, Normalized] = {}
    for members in alike.values():
        if len(members) > 1:
            together = _iterate([calls[i] for i in members])
            results.update(zip(members, together, strict=True))
    return [results[i] if i in results else normalize(*call) for i, call in enumerate(calls)]


def foreach_rescale_backward(calls: Sequence[tuple[Any, ...]]) -> list[Tensor]:
    """``rescale_backward`` of each."""
    grad, weight, _, _, _, sigma = calls[0]
    grad_types = {call[0].dtype for call in calls}
    longest = max(call[1].numel() for call in calls)
    misaligned = any(x.data_ptr() % 16 for call in calls for x in (call[0], call[1]))
    alike = len(grad_types) == 1 and longest < 2**31 and not misaligned
    if launch.is_capturing(weight.device) or not alike:
        return [rescale_backward(*call) for call in calls]
    outs = [torch.empty_like(call[1]) for call in calls]
    columns = []
    for (grad, weight, view, u, v, sigma), out in zip(calls, outs, strict=True):
        blocks = min(ceil_div(weight.numel(), DOT_BLOCK), DOT_PROGRAMS)
        column = Column(
            weight=weight.data_ptr(),
            u=u.data_ptr(),
            v=v.data_ptr(),
            sigma=sigma.data_ptr(),
            out=out.data_ptr(),
            grad=grad.data_ptr(),
            state=0,
            scratch=0,
            **_sizes(view),
            programs=(blocks, _apply_tiles(view), 0),
        )
        columns.append(column)
    table = upload(columns, weight.device)
    partial = sigma.new_empty(table.layers, DOT_PROGRAMS)
    arguments = {
        "table_ptr": table.fields,
        "partial_ptr": partial,
        "GRAD_TYPE": TYPES[grad.dtype],
        "WEIGHT_TYPE": TYPES[weight.dtype],
        "LAYERS": table.layers,
        "PROGRAMS": DOT_PROGRAMS,
    }
    with launch.on_device_of(weight):
        foreach_grad_dot[(table.programs[0],)](**arguments, BLOCK=DOT_BLOCK, num_warps=8)
        foreach_grad_apply[(table.programs[1],)](
            **arguments,
            PERMUTES=table.permutes,
            DOT_BLOCK=DOT_BLOCK,
            R=FOREACH_ROWS,
            BLOCK=ELEMENTWISE_BLOCK,
            num_warps=8,
        )
    return outs


def _joins(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    n_power_iterations: int,
    eps: float,
    dtype: torch.dtype,
    buffers: tuple[Tensor, ...],
) -> bool:
    live = len(buffers) == 3 and buffers[0] is u and buffers[1] is v
    aligned = weight.data_ptr() % 16 == 0 and weight.numel() < 2**31
    return live and aligned and n_power_iterations > 0 and buffers[2].dtype == u.dtype


def _iterate(calls: Sequence[tuple[Any, ...]]) -> list[Normalized]:
    weight, _, u, _, n_power_iterations, _, dtype, _ = calls[0]
    layers = tuple(
        Layer(weight.data_ptr(), u.data_ptr(), v.data_ptr(), buffers[2].data_ptr(), view)
        for weight, view, u, v, _, _, _, buffers in calls
    )
    plan = _plan(layers, weight.device, dtype.itemsize, u.element_size())
    out = weight.new_empty(plan.out_size, dtype=dtype)
    state = u.new_empty(plan.state_size)
    scratch = u.new_empty(plan.scratch_size)
    lanes = launch.warp_size(u.device)
    tile = foreach_tile(u.element_size(), lanes)
    arguments = {
        "table_ptr": plan.table.fields,
        "out_ptr": out,
        "scratch_ptr": scratch,
        "LAYERS": plan.table.layers,
        "R": tile.R,
    }
    kind = TYPES[weight.dtype]
    power, reduce, finish = ((programs,) for programs in plan.table.programs)
    with launch.on_device_of(weight):
        for iteration in range(n_power_iterations):
            foreach_power[power](
                **arguments,
                WEIGHT_TYPE=kind,
                PERMUTES=plan.table.permutes,
                BLOCK_N=tile.BLOCK_N,
                num_warps=tile.num_warps,
            )
            foreach_reduce[reduce](
                **arguments,
                BLOCK=SHARE_COLUMNS,
                ROWS=SHARE_ROWS,
                num_warps=warps(SHARE_ROWS * SHARE_COLUMNS, u.element_size(), lanes),
            )
            foreach_finish[finish](
                **arguments,
                state_ptr=state,
                WEIGHT_TYPE=kind,
                RESCALES=iteration == n_power_iterations - 1,
                BLOCK=ELEMENTWISE_BLOCK,
                PERMUTES=plan.table.permutes,
                VECTOR_BLOCK=VECTOR_BLOCK,
                SHARE_COLUMNS=SHARE_COLUMNS,
            )
    return [
        (
            # Not views of one tensor: they would share a version counter.
            _part(out, plan.outs[i], call[0].shape, call[0].stride()),
            *state[plan.states[i] :][: call[1].M + call[1].N].split((call[1].M, call[1].N)),
            _part(state, i, (), ()),
        )
        for i, call in enumerate(calls)
    ]


@lru_cache(maxsize=64)
def _plan(layers: tuple[Layer, ...], device: torch.device, out_bytes: int, bytes_: int) -> Plan:
    rows = foreach_tile(bytes_, 32).R
    unit = OUT_UNIT.value
    columns: list[Column] = []
    out_size, state_size, scratch_size = 0, len(layers), 0
    outs, states = [], []
    for weight, u, v, sigma, view in layers:
        numel, M, N = view.M * view.N, view.M, view.N
        programs = (
            ceil_div(M, rows),
            ceil_div(N, SHARE_COLUMNS),
            ceil_div(numel, ELEMENTWISE_BLOCK),
        )
        outs.append(out_size)
        states.append(state_size)
        columns.append(
            Column(
                weight,
                u,
                v,
                sigma,
                out=out_size // unit,
                grad=0,
                state=state_size,
                scratch=scratch_size,
                **_sizes(view),
                programs=programs,
            )
        )
        # The shares of s lie in the output's memory: it is written only once they have been read.
        shares = ceil_div(programs[0] * N * bytes_, out_bytes)
        out_size += ceil_div(max(numel, shares), unit) * unit
        state_size += M + N
        scratch_size += M + N + 2 * (programs[0] + programs[1])
    table = upload(columns, device)
    return Plan(table, tuple(outs), tuple(states), out_size, state_size, scratch_size)


def _apply_tiles(view: MatrixView) -> int:
    """The programs of ``foreach_grad_apply``, which takes memory in two dimensions as it likes."""
    if view.P == 1 and view.Q % WIDE.value == 0:
        columns = ELEMENTWISE_BLOCK // FOREACH_ROWS
        return ceil_div(view.M, FOREACH_ROWS) * ceil_div(view.N, columns)
    return view.P * ceil_div(view.M * view.Q, ELEMENTWISE_BLOCK)


def _sizes(view: MatrixView) -> dict[str, Any]:
    return {"M": view.M, "N": view.N, "Q": view.Q, "K": view.K, "C": view.C}


def _part(memory: Tensor, place: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return memory.new_empty(0).set_(memory.untyped_storage(), place, shape, stride)
