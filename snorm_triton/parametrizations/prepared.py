"""Constrained tensors that were computed ahead of their access, and what they are valid for."""

from __future__ import annotations

import sys
from operator import is_
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import streams
from ..ops.fingerprint import fingerprint
from ..torch_internals.autograd import backward_id
from ..torch_internals.storage import memory_of, version
from . import updates
from .base import Originals, Parametrization


class TracedWeight:
    """Of a forward that torch.compile traces, where nothing else can change."""

    outlives_forward = False

    def __init__(
        self,
        originals: Originals,
        output: Any,
        parametrization: Parametrization,
        model: nn.Module,
    ) -> None:
        self.originals = originals
        self.tensor: Tensor = output[0]
        self.model = model
        self.is_training = parametrization.training
        self.with_grad = torch.is_grad_enabled()

    def serves(self, originals: Originals, parametrization: Parametrization) -> bool:
        """Whether an access to ``originals`` here gets this."""
        return (
            torch.compiler.is_compiling()
            and are_same(originals, self.originals)
            and self.tensor.dtype == parametrization.output_dtype(originals[-1])
            and parametrization.training == self.is_training
            and (self.with_grad or not torch.is_grad_enabled())
        )

    def hand_over(self, originals: Originals, parametrization: Parametrization) -> Tensor:
        """The constrained tensor: the compiler orders what is done with it."""
        return self.tensor


class PreparedWeight:
    """Of one forward of a model, or of any number of evaluations without gradients."""

    def __init__(
        self,
        originals: Originals,
        output: Any,
        parametrization: Parametrization,
        forward: FrameType | None = None,
    ) -> None:
        self.originals = originals
        self.output = output
        self.tensor: Tensor = output[0]
        self.version = version(self.tensor)
        device = self.tensor.device
        self.stream = streams.current(device)
        self.is_captured = streams.is_capturing(device)
        self.forward = forward
        self.outlives_forward = forward is None
        self.conditions = self._conditions(originals, parametrization)
        self.with_grad = torch.is_grad_enabled()

    def _conditions(
        self, originals: Originals, parametrization: Parametrization
    ) -> tuple[object, ...]:
        own: Any = parametrization._parameters  # such as a learned scale
        return (
            *map(_contents, originals),
            *map(_contents, own.values()),
            parametrization.iterates,
            updates.steps,
            backward_id(),  # a recomputation inside a backward is no access
            # An evaluation that outlives its forward: of u and v, too.
            self.forward is not None or parametrization.state_now(),
        )

    def serves(self, originals: Originals, parametrization: Parametrization) -> bool:
        """Whether an access to ``originals`` here and now gets this."""
        is_grad_enabled = torch.is_grad_enabled()
        return (
            not torch.compiler.is_compiling()
            and are_same(originals, self.originals)
            and version(self.tensor) == self.version
            and self.tensor.dtype == parametrization.output_dtype(originals[-1])
            and (self.with_grad or not is_grad_enabled)
            and self._conditions(originals, parametrization) == self.conditions
            and (self.forward is None or is_running(self.forward))
            # A graph cannot wait for what is not in it.
            and streams.is_capturing(self.tensor.device) == self.is_captured
        )

    def hand_over(self, originals: Originals, parametrization: Parametrization) -> Tensor:
        """The constrained tensor, for whatever the current stream does with it."""
        if self.stream is not None:
            made = [each for each in self.output if isinstance(each, Tensor)]
            streams.hand_over(self.stream, *made)
        return parametrization.hand_over(originals, self.output)


def are_same(one: Originals, other: Originals) -> bool:
    """Whether both are of the same tensors."""
    return all(map(is_, one, other))


def _contents(original: Tensor) -> tuple[object, ...]:
    """What tells the values of a tensor from those that it will have."""
    return (
        version(original),
        memory_of(original),
        original.stride(),
        fingerprint(original),
        original.requires_grad,
    )


def is_running(frame: FrameType | None) -> bool:
    """Whether ``frame`` is among the callers: not so in another thread, nor once it has ended.

    A hook is not told of every end: KeyboardInterrupt passes it by.
    """
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None
