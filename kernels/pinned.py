"""Host memory that a GPU copies from by itself, and that a graph copies from at each replay."""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

_SLAB = 2**17  # int64 elements, 1 MiB: room for hundreds of captures

_lock = Lock()
# How long a graph lives that was captured with some of it, nobody says: none is ever given back.
_slabs: list[Tensor] = []
_taken = 0  # elements of the last


def prepare() -> None:
    """See that :func:`take` has memory while a graph is captured, when none can be pinned."""
    with _lock:
        if not _slabs or len(_slabs[-1]) - _taken < _SLAB // 2:
            _add(_SLAB)


def take(size: int) -> Tensor:
    """Pinned memory of ``size`` int64 elements that is never given to anybody else."""
    global _taken
    with _lock:
        if not _slabs or len(_slabs[-1]) - _taken < size:
            _add(max(_SLAB, size))
        _taken += size
        return _slabs[-1][_taken - size : _taken]


def _add(size: int) -> None:
    global _taken
    with torch.inference_mode(False):  # to be written to in whatever mode
        _slabs.append(torch.empty(size, dtype=torch.int64, device="cpu", pin_memory=True))
    _taken = 0
