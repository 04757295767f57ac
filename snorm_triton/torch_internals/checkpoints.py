"""Which activation checkpoints code runs in: the frames of torch's functions tell.

They are known by what they hold, a checkpoint's own object, and not by the names of variables.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import FrameType, GeneratorType
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint

from .aside import aside
from .autograd import backward_id, saved_tensors_hooks
from .door import private

_MODULE = "torch.utils.checkpoint"
FILE = torch_checkpoint.__file__  # of the code of whatever frame of a checkpoint's
_Checkpoint: Any = private(_MODULE, "_CheckpointFrame", ())
_FORWARD = torch_checkpoint.CheckpointFunction.forward.__code__
_BACKWARD = torch_checkpoint.CheckpointFunction.backward.__code__
_SELECTIVE = tuple(
    mode
    for name in ("_CachingTorchDispatchMode", "_CachedTorchDispatchMode")
    if (mode := private(_MODULE, name)) is not None
)
_current_mode = private("torch.utils._python_dispatch", "_get_current_dispatch_mode")
_no_modes = private("torch.utils._python_dispatch", "_disable_current_modes")

Run = tuple[int, int]
"""A recomputation, told from others of the same checkpoint."""


def around() -> list[tuple[Any, Run | None]]:
    """torch's checkpoints around this, from the innermost, each an object that takes attributes;
    and which recomputation of it this is, None in its forward.
    """
    found = _search(sys._getframe(1))
    if not found and saved_tensors_hooks(True) is not None and not _are_known():
        _warn()
    return found


def _search(frame: FrameType | None) -> list[tuple[Any, Run | None]]:
    found: list[tuple[Any, Run | None]] = []
    while frame is not None:
        if frame.f_code.co_filename == FILE:
            checkpoint, is_recomputed = _checkpoint_in(frame)
            if checkpoint is not None and all(checkpoint is not each for each, _ in found):
                run = (backward_id(), id(frame)) if is_recomputed else None
                found.append((checkpoint, run))
        frame = frame.f_back
    return found


def _checkpoint_in(frame: FrameType) -> tuple[Any, bool]:
    """The checkpoint of a function of torch's that runs, and whether it recomputes."""
    code = frame.f_code
    if code is _FORWARD or code is _BACKWARD:
        return frame.f_locals[code.co_varnames[0]], code is _BACKWARD
    if not _Checkpoint:
        return None, False
    values = list(frame.f_locals.values())
    for value in values:
        if isinstance(value, _Checkpoint):
            return value, True
    # The forward runs between two steps of a generator, which holds the checkpoint.
    for value in values:
        if isinstance(value, GeneratorType) and value.gi_frame is not None:
            for held in value.gi_frame.f_locals.values():
                if isinstance(held, _Checkpoint):
                    return held, False
    return None, False


@lru_cache(maxsize=1)
def _are_known() -> bool:
    """Whether a checkpoint shows, tried once, where nothing else is around."""
    seen: list[list[tuple[Any, Run | None]]] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(_search(sys._getframe()))
        return x.sin()

    def attempt() -> None:
        x = torch.ones((), device="cpu", requires_grad=True)
        torch_checkpoint.checkpoint(function, x, use_reentrant=False).backward()

    aside(attempt)
    if len(seen) != 2 or [len(each) for each in seen] != [1, 1]:
        return False
    (forward, no_run), (recomputed, run) = seen[0][0], seen[1][0]
    return forward is recomputed and no_run is None and run is not None


def _warn() -> None:
    warnings.warn(
        f"the checkpoints of torch {torch.__version__} are not known to snorm_triton: where "
        "another access comes between a checkpointed forward and its backward, gradients are off, "
        "unless checkpoint is called with context_fn=snorm_triton.checkpoint_contexts or "
        "use_reentrant=True",
        UserWarning,
        stacklevel=2,
    )


def unseen() -> AbstractContextManager[None]:
    """Keep operations from a selective checkpoint, which wants those of the forward once more.

    An access that is recomputed does others: it takes what the forward took.
    """
    if _current_mode is None or _no_modes is None or not isinstance(_current_mode(), _SELECTIVE):
        return nullcontext()
    modes: AbstractContextManager[None] = _no_modes()
    return modes
