"""What a forward took for u, v and sigma, kept for an activation checkpoint that recomputes it.

By the time of the backward another access may have iterated. So what an access takes inside of a
checkpoint is kept with that checkpoint, and its recomputation takes it again.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import checkpoints
from ..torch_internals.autograd import backward_id, in_backward, saved_tensors_hooks
from ..torch_internals.storage import memory_of
from .calls import Iterate, Replay, State, Step

_KEPT = "_snorm_triton_kept"  # the attribute of what torch has for a checkpoint


class Kept:
    """What the accesses of one checkpoint took, by their owners and in their order."""

    def __init__(self) -> None:
        self.states: dict[object, list[State]] = {}
        self.replayed: dict[tuple[object, ...], int] = {}

    def replay(self, owner: object, run: object) -> State | None:
        """The next of ``owner`` in this recomputation; the last where it has no more."""
        states = self.states.get(owner)
        if not states:
            return None
        position = self.replayed.get((owner, run), 0)
        self.replayed[owner, run] = position + 1
        return states[min(position, len(states) - 1)]


# What each checkpoint around keeps, from the innermost, and which recomputation of it this is.
Checkpoints = list[tuple[Kept, object]]


class _Entered(threading.local):
    """The contexts of :func:`checkpoint_contexts` that this thread is in."""

    def __init__(self) -> None:
        self.checkpoints: Checkpoints = []


_entered = _Entered()


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for the forward of an activation checkpoint and for its recomputation.

    A recomputation takes the u, v and sigma that its forward took, whatever was accessed since. For
    torch's checkpoints that needs no help, as long as this torch's are known: where they are not, a
    warning says so. Here is the sturdy way, and the way for checkpoints of other libraries, which
    enter the first around the forward, and the second, as often as they like, around what they
    recompute.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import checkpoint_contexts, spectral_norm
        >>> from torch.utils.checkpoint import checkpoint
        >>> layer = spectral_norm(nn.Linear(20, 40))
        >>> y = checkpoint(
        ...     layer, torch.randn(3, 20), use_reentrant=False, context_fn=checkpoint_contexts
        ... )
    """
    kept = Kept()
    return _Context(kept, is_recomputed=False), _Context(kept, is_recomputed=True)


class _Context(AbstractContextManager[None]):
    """Entered anew at each backward through a retained graph."""

    def __init__(self, kept: Kept, is_recomputed: bool) -> None:
        self.kept = kept
        self.is_recomputed = is_recomputed
        self.entries: Checkpoints = []

    def __enter__(self) -> None:
        entry = self.kept, object() if self.is_recomputed else None
        self.entries.append(entry)
        _entered.checkpoints.insert(0, entry)

    def __exit__(self, *error: object) -> None:
        _entered.checkpoints.remove(self.entries.pop())


def is_possible() -> bool:
    """Whether this may be a recomputation, or be recomputed where gradients are on."""
    return (
        backward_id() != -1 or saved_tensors_hooks(True) is not None or bool(_entered.checkpoints)
    )


def around_access() -> Checkpoints | None:
    """As :func:`around`; None in compiled code, whose operators look for them as they run."""
    if torch.compiler.is_compiling():
        return None
    # Without gradients as in the forward of a reentrant checkpoint.
    return around() if is_possible() or not torch.is_grad_enabled() else []


def around() -> Checkpoints:
    """The checkpoints around this, from the innermost."""
    found: Checkpoints = []
    for checkpoint, run in checkpoints.around():
        if not hasattr(checkpoint, _KEPT):
            setattr(checkpoint, _KEPT, Kept())
        found.append((getattr(checkpoint, _KEPT), run))
    # Nobody knows how contexts and torch's own lie in each other: a forward, which is short, inside
    # of what recomputes.
    forwards = [entry for entry in _entered.checkpoints if entry[1] is None]
    runs = [entry for entry in _entered.checkpoints if entry[1] is not None]
    return [*forwards, *found, *runs]


def keep(around: Checkpoints, owner: object, state: State) -> None:
    """Keep what an access of ``owner`` takes, for those of the checkpoints that are forwards."""
    for kept, run in around:
        if run is not None:
            return
        kept.states.setdefault(owner, []).append(state)


def replay(around: Checkpoints, owner: object) -> State | None:
    """What the access of ``owner`` took that one of the checkpoints recomputes; else None."""
    for kept, run in around:
        if run is not None:
            return kept.replay(owner, run)
    return None


def at_run_time(
    state: State, step: Step, checkpoints: Checkpoints, owner: object, is_due: bool
) -> tuple[State, Step]:
    """What an access takes that was traced as ``step`` and now runs, with the last ``state``.

    Inside a backward nothing iterates. What is recomputed there takes what its checkpoint kept, or
    else the buffers, which hold by then what the last forward left in them.
    """
    kept = replay(checkpoints, owner)
    if kept is not None:
        return kept, Replay(kept.sigma)
    if isinstance(step, Iterate) and (in_backward() or not is_due):
        return state, Replay(state.sigma)
    return state, step


# By the memory of u, by which alone operators know a module.
_owners: dict[Any, object] = {}
_many = 128  # of them, from which on those whose memory is gone are looked for


def own(u: Tensor, owner: object) -> None:
    """Let operators find by the buffer ``u`` whose it is."""
    global _many
    if len(_owners) >= _many:
        for memory in [memory for memory in _owners if memory.expired()]:
            del _owners[memory]
        _many = max(128, 2 * len(_owners))
    _owners[memory_of(u)] = owner


def owner_of(u: Tensor) -> object:
    """Whose buffer ``u`` is; None where it is nobody's."""
    return _owners.get(memory_of(u))
