"""When a tensor is handed out that was computed ahead: in its forward, above all."""

from __future__ import annotations

import sys
from threading import get_ident
from types import FrameType

import torch

from ..ops import recomputation, streams
from ..torch_internals import functorch
from ..torch_internals.autograd import backward_id
from ..torch_internals.checkpoints import FILE as CHECKPOINT_FILE
from . import updates
from .base import evaluations


class Circumstances:
    """What weights have in common that are computed ahead together: their forward, above all.

    ``frame`` is None of evaluations without gradients, which outlive their forward.
    """

    def __init__(self, device: torch.device, frame: FrameType | None = None) -> None:
        self.frame = frame
        self._thread = get_ident()
        self.steps = updates.steps
        self.backward = backward_id()  # a recomputation inside a backward is no access
        self.with_grad = torch.is_grad_enabled()
        self.device = device
        self.stream = streams.current(device)
        self.handle = streams.handle(device)
        self.is_captured = streams.is_capturing(device)

    def is_where(self, other: Circumstances) -> bool:
        """Whether no stream has to wait for what was computed under the ``other``."""
        return self.handle == other.handle and self.is_captured == other.is_captured

    def are_over(self) -> bool:
        """Whether the forward, one of this thread's, has ended."""
        return self._thread == get_ident() and not is_running(self.frame)

    def last(self) -> bool:
        """Whether it is as it was."""
        return (
            (self.with_grad or not torch.is_grad_enabled())
            and self.steps == updates.steps
            and self.backward == backward_id()
            and (self.frame is None or is_running(self.frame))
            # A graph cannot wait for what is not in it.
            and streams.is_capturing(self.device) == self.is_captured
        )

    def last_plainly(self) -> bool:
        """Whether it is, and nothing else is to be done but to hand the weights out.

        No transform takes them, no checkpoint is to be told, and no stream has to wait. A
        checkpoint around the forward itself was seen when they were computed.
        """
        if (
            self.with_grad is not torch.is_grad_enabled()
            or self.steps != updates.steps
            or not is_plain()
        ):
            return False
        if self.handle is not None and (
            streams.handle(self.device) != self.handle
            or streams.is_capturing(self.device) != self.is_captured
        ):
            return False
        frame = self.frame
        if self.with_grad:
            caller: FrameType | None = sys._getframe(1)
            while caller is not None and caller is not frame:
                caller = caller.f_back
            return caller is not None
        # Without gradients this may be the forward of a reentrant checkpoint: its frame tells.
        return is_running(frame, past_checkpoints=False)


def is_plain() -> bool:
    """Whether an access here is no recomputation, no evaluation, and nobody else's to look into.

    Without gradients it may be in a reentrant checkpoint all the same.
    """
    return not (recomputation.is_possible() or evaluations.depth or functorch.active())


def is_running(frame: FrameType | None, past_checkpoints: bool = True) -> bool:
    """Whether ``frame`` is among the callers: not so in another thread, nor once it has ended.

    Or past no frame of torch's checkpoints. A hook is not told of every end: KeyboardInterrupt
    passes it by.
    """
    caller: FrameType | None = sys._getframe(1)
    if past_checkpoints:
        while caller is not None and caller is not frame:
            caller = caller.f_back
        return caller is not None
    while caller is not None and caller is not frame:
        if caller.f_code.co_filename == CHECKPOINT_FILE:
            return False
        caller = caller.f_back
    return caller is frame
