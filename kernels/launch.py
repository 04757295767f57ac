"""Where a kernel is launched, and what every launch says of the weight's layout."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
import triton.language as tl
from torch import Tensor

from ..ops.matrix_view import MatrixView
from ..ops.streams import is_capturing as is_capturing
from .config import hidden_factor
from .launcher import Again, Launcher

# A product that is fused into one operand of a sum, and not into the other, makes the lanes that
# should hold the same sum differ in its last bit: which of them a store takes is nobody's choice.
ROUNDING = {"enable_fp_fusion": False}

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}

_launchers: dict[int, Launcher] = {}  # by the identities of kernels, whose hash takes long


def run(kernel: Any, programs: int, /, **arguments: Any) -> None:
    """Launch ``programs`` of ``kernel``: every launch of ours goes through here."""
    _launcher_of(kernel)(programs, arguments)


def _launcher_of(kernel: Any) -> Launcher:
    launcher = _launchers.get(id(kernel))
    if launcher is None:
        launcher = _launchers[id(kernel)] = Launcher(kernel)
    return launcher


K = TypeVar("K", bound=Hashable)
R = TypeVar("R")
_kept: list[Any] = []


def once_for_each(setup: Callable[[K], R]) -> Callable[[K], R]:
    """Keep what ``setup`` returns for a kind of weights: launches, which hold no tensor."""
    cached = lru_cache(maxsize=1024)(setup)
    _kept.append(cached)
    return cast(Callable[[K], R], cached)


def forget() -> None:
    """Set all launches up anew, as after a change of what is configured."""
    for cached in _kept:
        cached.cache_clear()


class Launch:
    """A launch that is made again and again, of other tensors each time.

    Args:
        kernel: what is launched.
        programs: how many of it.
        varying: the arguments that are others each time, all of them tensors.
        arguments: those that stay.
    """

    def __init__(
        self, kernel: Any, programs: int, varying: Sequence[str], /, **arguments: Any
    ) -> None:
        self.kernel = kernel
        self._programs, self._varying, self._arguments = programs, varying, arguments
        self._was_made = False
        self._again: Again | None = None

    def __call__(self, memory: Mapping[str, Tensor]) -> None:
        """Launch it, of the varying among these."""
        tensors = [memory[name] for name in self._varying]
        again = self._again
        if again is not None and again(tensors):
            return
        arguments = self._arguments | dict(zip(self._varying, tensors, strict=True))
        run(self.kernel, self._programs, **arguments)
        if self._was_made:  # once, and is to be made often
            self._again = _launcher_of(self.kernel).again(self._programs, arguments, self._varying)
        self._was_made = True


def in_order(launches: Sequence[Launch], memory: Mapping[str, Tensor]) -> None:
    """Make each, on the device of its memory."""
    with on_device_of(next(iter(memory.values()))):
        for each in launches:
            each(memory)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the current one: Triton launches there. Nothing to do on the CPU."""
    device = tensor.device
    if device.type == "cpu" or device.index == torch.accelerator.current_device_index():
        return nullcontext()
    return torch.accelerator.device_index(device.index)


def warp_size(device: torch.device) -> int:
    """Threads in a warp: 64 on ROCm's data-center devices, 32 elsewhere."""
    return 64 if device.type == "cuda" and torch.version.hip is not None else 32


@lru_cache
def shared_memory(device: torch.device) -> int:
    """Bytes that one program may have; 0 where loads in flight do not go through them."""
    if device.type == "cpu":
        return 227 * 1024  # interpreted, as on an H100
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    # A kibibyte of each program's is the system's.
    return int(torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor) - 1024


def layout_of(view: MatrixView, columns: int) -> dict[str, int | bool]:
    """The constexprs by which kernels index rows of ``columns``.

    Q is 0 where P = 1, so that no N compiles anew; FACTOR, a power of two, divides ``columns``.
    """
    plain = view.P == 1
    factor = hidden_factor(columns)
    return {"FACTOR": factor, "Q": 0 if plain else view.Q, "K": view.K, "PLAIN": plain}


def rows_of(view: MatrixView) -> dict[str, Any]:
    """The constexprs of ``layout_of`` for kernels to which the order of columns does not matter."""
    layout = layout_of(view, view.N)
    index = tl.int32 if view.M * view.N < 2**31 else tl.int64
    return {"INDEX": index, **{name: layout[name] for name in ("FACTOR", "Q", "PLAIN")}}
