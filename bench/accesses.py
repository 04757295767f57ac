"""The bytes that kernels touch, from their own index arithmetic: Triton's interpreter, watched.

Works for any kernel. What it was given is found by address: its tensor arguments, and the tensors
whose addresses stand in an int64 argument, a device table of pointers. An access of any other
memory raises before it happens.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

SECTOR = 32  # bytes that a GPU's memory moves at a time
READ, WRITE = "read", "write"
DIRECTIONS = {
    "create_masked_load": (READ,),
    "create_masked_store": (WRITE,),
    "create_atomic_rmw": (READ, WRITE),
    "create_atomic_cas": (READ, WRITE),
}


@dataclass
class Traffic:
    """Bytes of one tensor that one launch reads, or writes."""

    tensor: str
    direction: str
    requested: int = 0  # by the active lanes of all loads, or stores
    must: int = 0  # distinct ones
    does: int = 0  # of sectors, each once a program
    again: int = 0  # of sectors that a later instruction of a program takes again


@dataclass
class Launch:
    """One kernel launch and what it moved."""

    kernel: str
    programs: int
    traffic: list[Traffic] = field(default_factory=list)

    @property
    def must(self) -> int:
        return sum(traffic.must for traffic in self.traffic)

    @property
    def does(self) -> int:
        return sum(traffic.does for traffic in self.traffic)

    @property
    def again(self) -> int:
        return sum(traffic.again for traffic in self.traffic)


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Run the block's kernel launches as ever, and collect what each one moves."""
    launches: list[Launch] = []
    watch: Watch | None = None
    run = GridExecutor.__call__

    def launched(executor: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal watch
        names = inspect.signature(executor.fn).parameters
        arguments = dict(zip(names, args, strict=False)) | kwargs
        watch = Watch({name: arguments[name] for name in names if name in arguments})
        try:
            run(executor, *args, **kwargs)
        finally:
            launches.append(Launch(executor.fn.__name__, watch.programs, watch.traffic()))
            watch = None

    def next_program(builder: Any, *index: int) -> None:
        assert watch is not None
        watch.programs += 1
        set_grid_idx(builder, *index)

    def accessed(pointers: Any, mask: Any, directions: tuple[str, ...]) -> None:
        if watch is None:
            raise RuntimeError("a kernel is running that was not launched while recording")
        watch.access(pointers, mask, directions)

    set_grid_idx = InterpreterBuilder.set_grid_idx
    with ExitStack() as patches:
        for name, directions in DIRECTIONS.items():
            access = watched(getattr(InterpreterBuilder, name), directions, accessed)
            patches.enter_context(mock.patch.object(InterpreterBuilder, name, access))
        patches.enter_context(mock.patch.object(InterpreterBuilder, "set_grid_idx", next_program))
        patches.enter_context(mock.patch.object(GridExecutor, "__call__", launched))
        yield launches


def watched(
    original: Callable[..., Any], directions: tuple[str, ...], accessed: Callable[..., None]
) -> Callable[..., Any]:
    """An operation of the interpreter's that says first which lanes of which pointers it takes."""
    names = list(inspect.signature(original).parameters)
    pointer_at = names.index("ptrs" if "ptrs" in names else "ptr")

    def access(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        accessed(given[names[pointer_at]], given.get("mask"), directions)
        return original(*args, **kwargs)

    return access


class Region:
    """The memory of one tensor that a launch was given, and which of it was touched how."""

    def __init__(self, name: str, start: int, end: int) -> None:
        self.name, self.start, self.end = name, start, end
        self.base = start // SECTOR * SECTOR
        self.sectors = -(-end // SECTOR) - self.base // SECTOR
        self.traffic: dict[str, Traffic] = {}
        self._touched: dict[str, np.ndarray] = {}  # [bytes], of 1 where touched
        self._program: dict[str, np.ndarray] = {}  # [sectors], the last program that touched it

    def access(self, address: np.ndarray, width: int, direction: str, program: int) -> None:
        """One instruction of a program; every element is aligned, so it lies in one sector."""
        if direction not in self.traffic:
            self.traffic[direction] = Traffic(self.name, direction)
            self._touched[direction] = np.zeros(self.sectors * SECTOR, np.uint8)
            self._program[direction] = np.zeros(self.sectors, np.int32)
        traffic, last = self.traffic[direction], self._program[direction]
        offset = address - np.uint64(self.base)
        touched = self._touched[direction].view(f"V{width}")
        touched[offset // np.uint64(width)] = b"\1" * width
        sectors = distinct(offset // np.uint64(SECTOR))
        again = int(np.count_nonzero(last[sectors] == program))
        last[sectors] = program
        traffic.requested += address.size * width
        traffic.again += again * SECTOR
        traffic.does += (sectors.size - again) * SECTOR

    def total(self) -> list[Traffic]:
        for direction, traffic in self.traffic.items():
            traffic.must = int(np.count_nonzero(self._touched[direction]))
        return list(self.traffic.values())


def distinct(x: np.ndarray) -> np.ndarray:
    """The distinct values; sorts only what is not in order, as most blocks are."""
    step = x[1:] != x[:-1]
    if (x[1:] < x[:-1]).any():
        return np.unique(x)
    return x[np.concatenate([[True], step])]


class Watch:
    """What one launch was given, and the accesses of its programs so far."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.programs = 0
        self.regions = [Region(*given) for given in memory_given(arguments)]

    def access(self, pointers: Any, mask: Any, directions: tuple[str, ...]) -> None:
        width = max(8, pointers.get_element_ty().primitive_bitwidth) // 8
        address = pointers.data.ravel()
        if mask is not None:
            # The mask of a block pointer comes bare.
            lanes = mask if isinstance(mask, np.ndarray) else mask.data
            address = address[np.broadcast_to(lanes, pointers.data.shape).ravel()]
        if not address.size:
            return
        low, high = address.min(), address.max()
        for region in self.regions:
            if not address.size:
                return
            if high < region.start or low >= region.end:
                continue
            inside = (address >= region.start) & (address + np.uint64(width) <= region.end)
            if inside.any():
                for direction in directions:
                    region.access(address[inside], width, direction, self.programs)
                address = address[~inside]
        if address.size:
            raise IndexError(
                f"{address.size} lanes {' and '.join(directions)} memory that the launch was not "
                f"given; it was given {', '.join(region.name for region in self.regions)}"
            )

    def traffic(self) -> list[Traffic]:
        return [traffic for region in self.regions for traffic in region.total()]


def memory_given(arguments: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(name, first address, end) of the tensors a launch is given, the smallest first.

    So a tensor that is a part of another given one is known by its own name.
    """
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor) and x.numel()}
    given: dict[tuple[int, int], str] = {}
    for name, x in tensors.items():
        same = given.get(extent(x))
        given[extent(x)] = f"{same}={name}" if same else name
    for name, table in tensors.items():
        if table.dtype == torch.int64:
            addresses = table.unique().numpy()
            for span in {extent(x) for x in living_tensors() if x.numel()}:
                if ((addresses >= span[0]) & (addresses < span[1])).any():
                    given.setdefault(span, f"*{name}")
    ordered = sorted(given.items(), key=lambda item: item[0][1] - item[0][0])
    return [(name, *span) for span, name in ordered]


def extent(x: Tensor) -> tuple[int, int]:
    """The addresses from a tensor's first element to the end of its last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def living_tensors() -> Iterator[Tensor]:
    """Every dense tensor on the CPU that Python holds: who wrote a table keeps what it names.

    Of torch's own classes: what compilers leave behind are tensors too, without memory.
    """
    for x in gc.get_objects():
        if type(x) in (Tensor, Parameter) and x.layout == torch.strided and x.device.type == "cpu":
            yield x
