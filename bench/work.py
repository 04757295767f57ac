"""What a launch of each kernel does, and how long a device takes for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch

from snorm_triton.kernels import launch
from snorm_triton.kernels.config import ceil_div
from snorm_triton.ops.matrix_view import MatrixView


class Device(NamedTuple):
    """A GPU, in bytes and microseconds."""

    name: str
    read: float  # from memory, a microsecond
    copied: float  # read and written
    cached: float  # from the cache of all multiprocessors
    multiprocessors: int = 132
    start: float = 0.5  # of a kernel that does nothing
    load: float = 0.4  # from where it is asked for until it is there
    sum: float = 0.3  # over a program: shuffles, shared memory and barriers


class Work(NamedTuple):
    """What a launch does."""

    kernel: str
    programs: int
    reads: float = 0  # bytes from memory
    again: float = 0  # bytes from cache
    writes: float = 0
    loads: int = 1  # in a chain
    sums: int = 0


def time_of(work: Work, device: Device) -> float:
    """Microseconds."""
    share = min(1.0, work.programs / device.multiprocessors)
    bandwidth = device.copied if work.writes else device.read
    read = (work.reads / bandwidth + work.again / device.cached) / share
    chain = work.loads * device.load + work.sums * device.sum
    if not work.writes:  # each load of a loop waits for the sums before it
        return device.start + chain + read
    return device.start + max(chain, read) + work.writes / bandwidth / share


def work_of(kernel: str, programs: int, arguments: dict[str, Any], views: list[MatrixView]) -> Work:
    """What a launch does, of one of the weights or of all."""
    if kernel.startswith("foreach"):
        return work_together(kernel, programs, arguments, views)
    (view,) = views

    def bytes_of(name: str) -> int:
        tensor: torch.Tensor = arguments[name]
        return tensor.numel() * tensor.element_size()

    if kernel in ("power_rows", "power_chunked"):
        weight = bytes_of("weight_ptr")
        if kernel == "power_chunked":
            chunks = ceil_div(view.N, arguments["BLOCK_N"])
            again = weight if chunks > 1 else 0
            return Work(kernel, programs, weight, again, 0, 2 * chunks, 2)
        tiles = ceil_div(ceil_div(view.M, arguments["R"]), programs)
        in_turn = 1 if arguments["STAGES"] > 1 else tiles
        return Work(kernel, programs, weight, 0, 0, in_turn, 3 * in_turn)
    if kernel == "reduce_partials":
        shares = arguments["programs"]
        trips = ceil_div(shares, arguments["ROWS"])
        return Work(kernel, programs, 0, 4 * shares * view.N, 0, 1 + trips, 2 + trips)
    if kernel == "finish_iteration":
        weight, out = bytes_of("weight_ptr"), bytes_of("out_ptr")
        return Work(kernel, programs, weight, 0, out, 5, 4)
    if kernel == "grad_dot":
        return Work(kernel, programs, bytes_of("grad_ptr") + bytes_of("weight_ptr"), 0, 0, 1, 1)
    if kernel == "grad_apply":
        return Work(kernel, programs, bytes_of("grad_ptr"), 0, bytes_of("out_ptr"), 3, 1)
    if kernel == "normalize_small":
        return Work(kernel, 132, bytes_of("weight_ptr"), 0, bytes_of("out_ptr"), 1, 4)
    assert kernel == "rescale_backward_small", kernel
    return Work(kernel, 132, bytes_of("grad_ptr"), 0, bytes_of("out_ptr"), 1, 2)


def work_together(
    kernel: str, programs: int, arguments: dict[str, Any], views: list[MatrixView]
) -> Work:
    """The same of many weights: a program finds its own in a table first, two loads and a sum."""
    itemsize = arguments["WEIGHT_TYPE"].primitive_bitwidth // 8 if "WEIGHT_TYPE" in arguments else 4
    elements = sum(view.M * view.N for view in views)
    weights = elements * itemsize
    if kernel == "foreach_power":
        longest = max(ceil_div(view.N, arguments["BLOCK_N"]) for view in views)
        long = sum(view.M * view.N for view in views if arguments["BLOCK_N"] < view.N)
        return Work(kernel, programs, weights, long * itemsize, 0, 2 + 2 * longest, 3)
    if kernel == "foreach_reduce":
        shares = [(ceil_div(view.M, arguments["R"]), view.N) for view in views]
        trips = ceil_div(max(each for each, _ in shares), arguments["ROWS"])
        again = sum(4 * each * N for each, N in shares)
        return Work(kernel, programs, 0, again, 0, 3 + trips, 3 + trips)
    if kernel == "foreach_finish":
        return Work(kernel, programs, weights, 0, weights, 7, 5)
    if kernel == "foreach_grad_dot":
        return Work(kernel, programs, 2 * weights, 0, 0, 3, 2)
    assert kernel == "foreach_grad_apply", kernel
    return Work(kernel, programs, weights, 0, weights, 5, 2)


@contextmanager
def caught_launches(views: list[MatrixView]) -> Iterator[list[Work]]:
    """What is launched in place of its launch, as on an H100 or H200."""
    caught: list[Work] = []

    def catch(kernel: Any, programs: int, /, **arguments: Any) -> None:
        caught.append(work_of(kernel.fn.__name__, programs, arguments, views))

    launch.forget()
    with (
        mock.patch.object(launch, "run", catch),
        mock.patch.object(launch, "warp_size", return_value=32),
        mock.patch.object(launch, "shared_memory", return_value=227 << 10),
        mock.patch.object(launch, "on_device_of"),
    ):
        yield caught
    launch.forget()
