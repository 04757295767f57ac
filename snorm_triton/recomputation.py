"""Whether what an activation checkpoint recomputes can come out as it did.

Inside a backward nothing iterates: an access takes u, v and sigma as the last iteration left them.
Where each access iterates, and another came after the one that is recomputed, that is wrong.
"""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.weak import WeakTensorKeyDictionary

from . import updates


def is_running() -> bool:
    """Whether this is inside a backward."""
    return torch._C._current_graph_task_id() != -1


class Iterations:
    """Those of one u and v: how many, and which of them a checkpoint may recompute.

    A step of an optimizer ends the wait for a recomputation.
    """

    __slots__ = ("checkpointed", "last", "steps", "total")

    def __init__(self) -> None:
        self.total = 0
        self.checkpointed = 0  # that wait to be recomputed
        self.last = 0  # of them
        self.steps = 0

    def add(self) -> None:
        """One more, here and now."""
        self.total += 1
        if _is_checkpointed():
            self.checkpointed = self.checkpointed + 1 if self.steps == updates.steps else 1
            self.steps = updates.steps
            self.last = self.total

    def replay(self) -> None:
        """Raise RuntimeError where what is recomputed may not be of the last iteration."""
        waiting = self.checkpointed if self.steps == updates.steps else 0
        if waiting > 1 or (waiting == 1 and self.last != self.total):
            raise RuntimeError(
                "a checkpointed forward is recomputed after another access iterated u and v, and "
                "cannot come out as it did: normalize with power_iter='update', which iterates "
                "once for each step of the optimizer, or call backward before the next forward"
            )
        self.checkpointed = 0


_iterations = WeakTensorKeyDictionary()  # by u, by which alone operators know a module


def count_as(u: Tensor, iterations: Iterations) -> None:
    """Let operators find by the buffer ``u`` what its module counts."""
    _iterations[u] = iterations


def iterations_of(u: Tensor) -> Iterations:
    """Those that were given for ``u``; new ones for a tensor that is no module's buffer."""
    found: Iterations | None = _iterations.get(u)
    return Iterations() if found is None else found


def _is_checkpointed() -> bool:
    """Whether this forward is one of torch.utils.checkpoint, of either kind."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return True
    if torch.is_grad_enabled():
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None
