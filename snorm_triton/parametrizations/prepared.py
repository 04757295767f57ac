"""Normalized weights that were computed ahead of their access, and what they are valid for."""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch import Tensor, nn

from ..ops import recomputation, streams
from ..ops.calls import Normalized
from ..ops.fingerprint import fingerprint
from ..torch_internals import functorch
from ..torch_internals.autograd import backward_id
from ..torch_internals.storage import memory_of, version
from . import updates
from .base import Parametrization


class TracedWeight:
    """Of a forward that torch.compile traces, where nothing else can change."""

    outlives_forward = False

    def __init__(
        self, weight: Tensor, weight_sn: Tensor, parametrization: Parametrization, model: nn.Module
    ) -> None:
        self.weight = weight
        self.weight_sn = weight_sn
        self.model = model
        self.is_training = parametrization.training
        self.with_grad = torch.is_grad_enabled()

    def serves(self, weight: Tensor, parametrization: Parametrization) -> bool:
        """Whether an access to ``weight`` here gets this."""
        return (
            torch.compiler.is_compiling()
            and weight is self.weight
            and self.weight_sn.dtype == parametrization.output_dtype(weight)
            and parametrization.training == self.is_training
            and (self.with_grad or not torch.is_grad_enabled())
        )

    def hand_over(self, weight: Tensor, parametrization: Parametrization) -> Tensor:
        """The normalized weight: the compiler orders what is done with it."""
        return self.weight_sn


class PreparedWeight:
    """Of one forward of a model, or of any number of evaluations without gradients."""

    def __init__(
        self,
        weight: Tensor,
        normalized: Normalized,
        parametrization: Parametrization,
        forward: FrameType | None = None,
    ) -> None:
        self.weight = weight
        self.weight_sn = normalized.weight_sn
        self.version = version(normalized.weight_sn)
        self.state = normalized.state
        self.stream = streams.current(weight.device)
        self.is_captured = streams.is_capturing(weight.device)
        self.forward = forward
        self.outlives_forward = forward is None
        self.conditions = self._conditions(weight, parametrization)
        self.with_grad = torch.is_grad_enabled()

    def _conditions(self, weight: Tensor, parametrization: Parametrization) -> tuple[object, ...]:
        return (
            version(weight),
            memory_of(weight),
            weight.stride(),
            fingerprint(weight),
            weight.requires_grad,
            parametrization.iterates,
            updates.steps,
            backward_id(),  # a recomputation inside a backward is no access
            # An evaluation that outlives its forward: of u and v, too.
            self.forward is not None or parametrization.state_now(),
        )

    def serves(self, weight: Tensor, parametrization: Parametrization) -> bool:
        """Whether an access to ``weight`` here and now gets this."""
        is_grad_enabled = torch.is_grad_enabled()
        return (
            not torch.compiler.is_compiling()
            and weight is self.weight
            and version(self.weight_sn) == self.version
            and self.weight_sn.dtype == parametrization.output_dtype(weight)
            and (self.with_grad or not is_grad_enabled)
            and self._conditions(weight, parametrization) == self.conditions
            and (self.forward is None or is_running(self.forward))
            # A graph cannot wait for what is not in it.
            and streams.is_capturing(weight.device) == self.is_captured
        )

    def hand_over(self, weight: Tensor, parametrization: Parametrization) -> Tensor:
        """The normalized weight, for whatever the current stream does with it."""
        if self.stream is not None:
            streams.hand_over(self.stream, self.weight_sn, *self.state)
        around = recomputation.around_access()
        if around:
            recomputation.replay(around, parametrization.owner)  # what was kept here: it is this
            recomputation.keep(around, parametrization.owner, self.state)
        if functorch.active():  # to which its graph is unknown
            return parametrization.again(weight, self.state)
        return self.weight_sn if torch.is_grad_enabled() else self.weight_sn.detach()


def is_running(frame: FrameType | None) -> bool:
    """Whether ``frame`` is among the callers: not so in another thread, nor once it has ended.

    A hook is not told of every end: KeyboardInterrupt passes it by.
    """
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None
