"""What a forward took for u, v and sigma, kept for an activation checkpoint that recomputes it.

By the time of the backward another access may have iterated. So what an access takes inside of a
checkpoint is kept with that checkpoint, and its recomputation takes it again. torch does not tell
which checkpoint code runs in, but the frames of its functions do.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import NamedTuple

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

_KEPT = "_snorm_triton_kept"  # the attribute of what torch has for a checkpoint
_FILE = torch_checkpoint._checkpoint_hook.__init__.__code__.co_filename
_FORWARD = torch_checkpoint.CheckpointFunction.forward.__code__
_BACKWARD = torch_checkpoint.CheckpointFunction.backward.__code__


class State(NamedTuple):
    """The singular vectors and sigma that an access divided its weight by."""

    u: Tensor
    v: Tensor
    sigma: Tensor


class _Kept:
    """What the accesses of one checkpoint took, by their owners and in their order."""

    def __init__(self) -> None:
        self.states: dict[object, list[State]] = {}
        self.replayed: dict[tuple[object, ...], int] = {}

    def replay(self, owner: object, recomputation: object) -> State | None:
        """The next of ``owner`` in this recomputation; the last where it has no more."""
        states = self.states.get(owner)
        if not states:
            return None
        position = self.replayed.get((owner, recomputation), 0)
        self.replayed[owner, recomputation] = position + 1
        return states[min(position, len(states) - 1)]


_SELECTIVE = (
    torch_checkpoint._CachingTorchDispatchMode,
    torch_checkpoint._CachedTorchDispatchMode,
)


def unseen() -> AbstractContextManager[None]:
    """Keep operations from a selective checkpoint, which wants those of the forward once more.

    An access that is recomputed does others: it takes what the forward took.
    """
    if isinstance(_get_current_dispatch_mode(), _SELECTIVE):
        return _disable_current_modes()
    return nullcontext()


Checkpoints = list[tuple[_Kept, object]]


def is_running() -> bool:
    """Whether this is inside a backward, where nothing iterates."""
    return torch._C._current_graph_task_id() != -1


def is_possible() -> bool:
    """Whether this may be a recomputation, or be recomputed where gradients are on."""
    return (
        torch._C._current_graph_task_id() != -1
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    )


def around() -> Checkpoints:
    """The checkpoints around this, from the innermost: what each keeps, and which recomputation of
    it this is, None in its forward.
    """
    found: Checkpoints = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code, checkpoint, recomputation = frame.f_code, None, None
        if code.co_filename == _FILE and "gen" in code.co_varnames:
            generator = frame.f_locals.get("gen")
            if generator is not None and generator.gi_frame is not None:
                checkpoint = generator.gi_frame.f_locals.get("new_frame")
        elif code.co_filename == _FILE and code.co_name == "unpack_hook":
            checkpoint, recomputation = frame.f_locals.get("frame"), id(frame)
        elif code is _FORWARD:
            checkpoint = frame.f_locals["ctx"]
        elif code is _BACKWARD:
            checkpoint, recomputation = frame.f_locals["ctx"], id(frame)
        if checkpoint is not None:
            if not hasattr(checkpoint, _KEPT):
                setattr(checkpoint, _KEPT, _Kept())
            run = recomputation and (torch._C._current_graph_task_id(), recomputation)
            found.append((getattr(checkpoint, _KEPT), run))
        frame = frame.f_back
    if not found:
        _check_no_checkpoint()
    return found


def _check_no_checkpoint() -> None:
    """Warn where torch is in the forward of a checkpoint that its frames do not show."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and "_checkpoint_hook" in getattr(hooks[0], "__qualname__", ""):
        warnings.warn(
            f"the checkpoints of torch {torch.__version__} are not known to snorm_triton: where "
            "another access comes between a checkpointed forward and its backward, gradients are "
            "off; use_reentrant=True is as it should be",
            UserWarning,
            stacklevel=2,
        )


def keep(checkpoints: Checkpoints, owner: object, state: State) -> None:
    """Keep what an access of ``owner`` takes, for those of ``checkpoints`` that are forwards."""
    for kept, run in checkpoints:
        if run is not None:
            return
        kept.states.setdefault(owner, []).append(state)


def replay(checkpoints: Checkpoints, owner: object) -> State | None:
    """What the access of ``owner`` took that one of ``checkpoints`` recomputes; else None."""
    for kept, run in checkpoints:
        if run is not None:
            return kept.replay(owner, run)
    return None


# By the memory of u, by which alone operators know a module. Weak, but not to the tensor: one that
# is weakly referred to cannot be swapped, as loading and converting a module may do.
_owners: dict[StorageWeakRef, object] = {}
_many = 128  # of them, from which on those whose memory is gone are looked for


def own(u: Tensor, owner: object) -> None:
    """Let operators find by the buffer ``u`` whose it is."""
    global _many
    if len(_owners) >= _many:
        for memory in [memory for memory in _owners if memory.expired()]:
            del _owners[memory]
        _many = max(128, 2 * len(_owners))
    _owners[StorageWeakRef(u.untyped_storage())] = owner


def owner_of(u: Tensor) -> object:
    """Whose buffer ``u`` is; None where it is nobody's."""
    return _owners.get(StorageWeakRef(u.untyped_storage()))
