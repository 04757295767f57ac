"""What computes weights of one kind again and again: its launches are set up once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.calls import Evaluate, Gradients, Iterate, Normalized, Replay, State, Step
from ..ops.matrix_view import MatrixView
from ..ops.rescaling import PLAIN, Rescaling
from .gradient import Gradient
from .normalize import Normalization
from .rescale import replay
from .together_backward import rescale_backward as rescale_backward_together


def kept(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    step: Iterate | Evaluate,
    dtype: torch.dtype,
    rescaling: Rescaling,
) -> Kept:
    """As :class:`snorm_triton.ops.backend.Backend` says."""
    return Kept(Normalization(weight, view, u, step, dtype, rescaling))


class Kept:
    """As :class:`snorm_triton.ops.backend.OfOneKind` says. It holds no tensor."""

    rescale_backward_together = staticmethod(rescale_backward_together)

    def __init__(self, normalization: Normalization) -> None:
        self._normalization = normalization
        self._gradients: dict[torch.dtype, Gradient] = {}  # by that of what comes

    def normalize(
        self,
        weight: Tensor,
        view: MatrixView,
        u: Tensor,
        v: Tensor,
        step: Step,
        dtype: torch.dtype,
        rescaling: Rescaling = PLAIN,
    ) -> Normalized:
        if isinstance(step, Replay):
            return replay(weight, view, State(u, v, step.sigma), dtype, rescaling)
        return self._normalization(weight, u, v, step, rescaling)

    def rescale_backward(
        self,
        grad: Tensor,
        weight: Tensor,
        view: MatrixView,
        u: Tensor,
        v: Tensor,
        sigma: Tensor,
        rescaling: Rescaling = PLAIN,
    ) -> Gradients:
        gradient = self._gradients.get(grad.dtype)
        if gradient is None:
            gradient = self._gradients[grad.dtype] = Gradient(weight, view, u, rescaling)
        return gradient(grad, weight, u, v, sigma, rescaling)
