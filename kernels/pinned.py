"""Host memory that a GPU copies from by itself, and that a graph copies from at each replay."""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

_SLAB = 2**17  # int64 elements, 1 MiB: room for hundreds of captures

_lock = Lock()
_rest: Tensor | None = None


def prepare() -> None:
    """See that :func:`take` has memory while a graph is captured, when none can be pinned."""
    global _rest
    with _lock:
        if _rest is None or len(_rest) < _SLAB // 2:
            _rest = torch.empty(_SLAB, dtype=torch.int64, device="cpu", pin_memory=True)


def take(size: int) -> Tensor:
    """Pinned memory of ``size`` int64 elements that is never given to anybody else.

    How long a graph lives that was captured with it, nobody says.
    """
    global _rest
    with _lock:
        if _rest is None or len(_rest) < size:
            return torch.empty(size, dtype=torch.int64, device="cpu", pin_memory=True)
        taken, _rest = _rest[:size], _rest[size:]
        return taken
