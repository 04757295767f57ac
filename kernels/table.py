"""Many weights in one launch: a table on the device says where each lies and who computes it."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.matrix_view import MatrixView
from . import launch, pinned
from .config import next_power_of_two

# Rows of a table; a column is a layer. Addresses are of bytes; places count elements from where an
# argument of the launch points, so that a table serves as long as the weights and their state stay.
WEIGHT = tl.constexpr(0)  # address
U = tl.constexpr(1)  # address
V = tl.constexpr(2)  # address
SIGMA = tl.constexpr(3)  # address
OUT = tl.constexpr(4)  # place of the normalized weight; address of the gradient
GRAD = tl.constexpr(5)  # address
NEW_U = tl.constexpr(6)  # place
NEW_V = tl.constexpr(7)  # place
NEW_SIGMA = tl.constexpr(8)  # place; address of the learned scale's gradient
SHARES = tl.constexpr(9)  # place
SCRATCH = tl.constexpr(10)  # place
M_SIZE = tl.constexpr(11)
N_SIZE = tl.constexpr(12)
Q_SIZE = tl.constexpr(13)
K_SIZE = tl.constexpr(14)
C_SIZE = tl.constexpr(15)
LEARNED = tl.constexpr(16)  # address of the scale
FIRST = tl.constexpr(17)  # and the next two: the layer's first program in each launch
FIELDS = 20

WIDE = tl.constexpr(8)  # elements of any dtype that fill 16 bytes
NEVER = 2**62  # the first program of a column that is no layer


class Column(NamedTuple):
    """A layer's fields but the last, in the order of the rows, and its programs in each launch."""

    weight: int
    u: int
    v: int
    sigma: int
    out: int
    grad: int
    new_u: int
    new_v: int
    new_sigma: int
    shares: int
    scratch: int
    M: int
    N: int
    Q: int
    K: int
    C: int
    learned: int
    programs: tuple[int, int, int]


class Table(NamedTuple):
    """FIELDS times layers on the device, the layers a power of two, and the programs to launch."""

    fields: Tensor
    layers: int
    programs: tuple[int, ...]
    permutes: bool  # the columns of some layer


def sizes_of(view: MatrixView) -> dict[str, Any]:
    """The fields of a ``Column`` that say how a weight is read."""
    return {"M": view.M, "N": view.N, "Q": view.Q, "K": view.K, "C": view.C}


class Rows(NamedTuple):
    """What a ``Table`` holds, on the host: int64, row after row."""

    values: array[int]
    layers: int
    programs: tuple[int, ...]
    permutes: bool

    def on(self, device: torch.device) -> Table:
        """The table on ``device``, without waiting for it; later changes do not reach it."""
        return Table(_on_device(self.values, device), self.layers, self.programs, self.permutes)

    def copy(self) -> Rows:
        """Rows to change without changing these."""
        return self._replace(values=self.values[:])

    def put(self, row: int, entries: Sequence[int]) -> None:
        """Let these be the entries of the layers in one row."""
        start = row * self.layers
        self.values[start : start + len(entries)] = array("q", entries)


class KeptRows:
    """Tables that differ in a few rows from one time to the next, and what is launched with them.

    By what they are of.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Rows, Sequence[launch.Launch]]] = {}

    def of(
        self, members: Hashable, make: Callable[[], tuple[Rows, Sequence[launch.Launch]]]
    ) -> tuple[Rows, Sequence[launch.Launch]]:
        """A copy of the members' table to fill: another thread may fill its own."""
        kept = self._kept.get(members)
        if kept is None:
            if len(self._kept) == _KEPT:
                self._kept.clear()
            kept = self._kept[members] = make()
        rows, launches = kept
        return rows.copy(), launches


_KEPT = 16


def upload(columns: Sequence[Column], device: torch.device) -> Table:
    """The table on ``device``, without waiting for it."""
    return rows_of(columns).on(device)


def rows_of(columns: Sequence[Column]) -> Rows:
    """The table of these layers, on the host."""
    layers = next_power_of_two(len(columns))
    padding = [NEVER] * (layers - len(columns))
    values = array("q")
    for row in zip(*(column[:-1] for column in columns), strict=True):
        values.extend([*row, *padding])
    programs = []
    for of_launch in zip(*(column.programs for column in columns), strict=True):
        *first, total = accumulate(of_launch, initial=0)
        values.extend([*first, *padding])
        programs.append(total)
    return Rows(values, layers, tuple(programs), any(column.K > 1 for column in columns))


def _on_device(values: array[int], device: torch.device) -> Tensor:
    # By name: the default device may be another.
    if device.type in ("cpu", "meta"):
        # A copy: the values may change before the kernels have run.
        return torch.frombuffer(bytearray(values), dtype=torch.int64).to(device)
    if launch.is_capturing(device):
        host = pinned.take(len(values))
    else:
        pinned.prepare()
        host = torch.empty(len(values), dtype=torch.int64, device="cpu", pin_memory=True)
    address, size = values.buffer_info()
    ctypes.memmove(host.data_ptr(), address, size * values.itemsize)
    return host.to(device, non_blocking=True)


@triton.jit
def layer_of(table_ptr, row, LAYERS: tl.constexpr):
    """The layer that this program works for, and its number among that layer's programs."""
    i = tl.arange(0, LAYERS)
    first = tl.load(table_ptr + row * LAYERS + i)
    started = first <= tl.program_id(0)
    layer = tl.sum(started.to(tl.int32), axis=0) - 1
    return layer, (tl.program_id(0) - tl.max(tl.where(started, first, 0), axis=0)).to(tl.int32)


@triton.jit
def entry(table_ptr, row, layer, LAYERS: tl.constexpr):
    """An address or a place. int64."""
    return tl.load(table_ptr + row * LAYERS + layer)


@triton.jit
def size(table_ptr, row, layer, LAYERS: tl.constexpr):
    """A size or a count. int32."""
    return tl.load(table_ptr + row * LAYERS + layer).to(tl.int32)


@triton.jit
def column_order(table_ptr, layer, LAYERS: tl.constexpr, PERMUTES: tl.constexpr):
    """C and K of the layer; ones for the compiler to see where no layer is permuted."""
    if PERMUTES:
        return size(table_ptr, C_SIZE, layer, LAYERS), size(table_ptr, K_SIZE, layer, LAYERS)
    else:
        return 1, 1
