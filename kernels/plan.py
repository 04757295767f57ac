"""Where the weights of a model, their state, and what launches for all of them write, lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from ..ops import streams
from ..ops.calls import Normalized
from ..ops.matrix_view import MatrixView
from . import launch
from .config import ELEMENTWISE_BLOCK, SHARE_COLUMNS, ceil_div, foreach_tile
from .table import Column, Table, sizes_of, upload

OUT_UNIT = 64  # elements: results in one piece begin at multiples of 128 bytes at least


class Layer(NamedTuple):
    """Where a layer's weight and state lie, and how it is read."""

    weight: int
    u: int
    v: int
    sigma: int
    view: MatrixView


class Place(NamedTuple):
    """Where a layer's results and memory lie, in elements."""

    out: int
    u: int
    v: int
    sigma: int
    shares: int
    scratch: int


class Sizes(NamedTuple):
    """Elements of memory that a model's launches take."""

    out: int  # the results in one piece; the shares of s lie there until they have been read
    outs: tuple[int, ...]  # of that, each layer's
    state: int
    shares: int  # of s in a piece of their own
    scratch: int


class Plan(NamedTuple):
    """The table of a model's weights, and where it says that their results lie."""

    table: Table
    places: tuple[Place, ...]
    sizes: Sizes


def plan_of(
    layers: tuple[Layer, ...], device: torch.device, out_bytes: int, state_bytes: int
) -> Plan:
    """The plan of these addresses with the results in one piece, kept from call to call.

    Each stream has its own: another might read the table before it has arrived. So has each capture
    of a graph, at whose every replay the table arrives anew.
    """
    build = _in_one_piece.__wrapped__ if launch.is_capturing(device) else _in_one_piece
    return build(layers, device, streams.current(device), out_bytes, state_bytes)


@lru_cache(maxsize=256)
def _in_one_piece(
    layers: tuple[Layer, ...],
    device: torch.device,
    stream: object,  # by which it is kept
    out_bytes: int,
    state_bytes: int,
) -> Plan:
    places, sizes = places_of(tuple(layer.view for layer in layers), out_bytes, state_bytes)
    return Plan(table_of(layers, places, device, state_bytes), places, sizes)


def table_apart(
    layers: tuple[Layer, ...], results: Sequence[Normalized], device: torch.device
) -> tuple[Table, Sizes]:
    """The table with ``results``, a layer's W / sigma, u, v and sigma, wherever they are."""
    out, u = results[0][:2]
    out_bytes, state_bytes = out.element_size(), u.element_size()
    known, sizes = places_of(tuple(layer.view for layer in layers), out_bytes, state_bytes)
    places, shares = [], 0
    for layer, place, (out_of, *state_of, _) in zip(layers, known, results, strict=True):
        at = (out_of.data_ptr() - out.data_ptr()) // out_bytes
        u_at, v_at, sigma_at = ((x.data_ptr() - u.data_ptr()) // state_bytes for x in state_of)
        places.append(Place(at, u_at, v_at, sigma_at, shares, place.scratch))
        shares += shares_of(layer.view, state_bytes)
    return table_of(layers, places, device, state_bytes), sizes


@lru_cache(maxsize=64)
def places_of(
    views: tuple[MatrixView, ...], out_bytes: int, state_bytes: int
) -> tuple[tuple[Place, ...], Sizes]:
    """Where the results of these weights lie in one piece, and the memory they take."""
    rows = foreach_tile(state_bytes, 32).R
    out, state, shares, scratch = 0, len(views), 0, 0
    places: list[Place] = []
    outs: list[int] = []
    for i, view in enumerate(views):
        M, N, programs = view.M, view.N, ceil_div(view.M, rows)
        places.append(Place(out, state, state + M, i, out * out_bytes // state_bytes, scratch))
        of_shares = ceil_div(programs * N * state_bytes, out_bytes)
        outs.append(ceil_div(max(M * N, of_shares), OUT_UNIT) * OUT_UNIT)
        out += outs[-1]
        state += M + N
        shares += shares_of(view, state_bytes)
        # t, s and their parts; or of an evaluation three parts a program, which are no more.
        scratch += M + N + 2 * (programs + ceil_div(N, SHARE_COLUMNS))
    return tuple(places), Sizes(out, tuple(outs), state, shares, scratch)


def shares_of(view: MatrixView, state_bytes: int) -> int:
    """The elements of the shares of s in a piece of their own."""
    programs = ceil_div(view.M, foreach_tile(state_bytes, 32).R)
    return ceil_div(programs * view.N, OUT_UNIT) * OUT_UNIT


def table_of(
    layers: Sequence[Layer], places: Sequence[Place], device: torch.device, state_bytes: int
) -> Table:
    """The table that says so of ``layers``, on ``device``."""
    rows = foreach_tile(state_bytes, 32).R
    columns = [
        Column(
            *layer[:-1],
            out=place.out,
            grad=0,
            new_u=place.u,
            new_v=place.v,
            new_sigma=place.sigma,
            shares=place.shares,
            scratch=place.scratch,
            **sizes_of(layer.view),
            programs=(
                ceil_div(layer.view.M, rows),
                ceil_div(layer.view.N, SHARE_COLUMNS),
                ceil_div(layer.view.M * layer.view.N, ELEMENTWISE_BLOCK),
            ),
        )
        for layer, place in zip(layers, places, strict=True)
    ]
    return upload(columns, device)
