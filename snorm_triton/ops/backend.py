"""What a backend provides; ``torch_any_device``, ``torch_cpu`` and ``kernels.backend`` do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .calls import Call, GradientCall, Gradients, Normalized, Step
from .matrix_view import MatrixView
from .rescaling import PLAIN, Rescaling
from .rounds import Rounds
from .row_scaling import RowRounds, RowScaled, RowScaling, RowScalingGradient


class Backend(Protocol):
    """Never synchronizes with the host, but where the weight is in the host's own memory."""

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
        """W / sigma of one weight, as a :class:`.calls.Call` has it: fresh.

        An iteration whose sigma is zero or not finite leaves u and v as they were; its sigma says
        which it was. A zero sigma divides by 1.
        """

    def normalize_together(self, calls: Sequence[Call], apart: bool = False) -> list[Normalized]:
        """That of each, of one device: in storages of their own if ``apart``."""

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
        """``(grad - <grad, W_sn> u v^T) / sigma`` of a real weight, and what goes with it."""

    def rescale_backward_together(self, calls: Sequence[GradientCall]) -> list[Gradients]:
        """That of each, of one device."""

    def rounds(self, calls: Sequence[Call]) -> Rounds | None:
        """What makes these calls, of one device, anew each time; None where they do not agree."""

    def scale_rows(
        self, weight: Tensor, view: MatrixView, g: Tensor, dtype: torch.dtype
    ) -> RowScaled:
        """The rows of a weight at the norms ``g``, as a :class:`.row_scaling.RowScaling` has it."""

    def scale_rows_backward(
        self, grad: Tensor, weight: Tensor, view: MatrixView, g: Tensor, norms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradients of the weight and of ``g``; ``norms`` as :meth:`scale_rows` gave them."""

    def scale_rows_together(self, calls: Sequence[RowScaling]) -> list[RowScaled]:
        """That of each, of one device."""

    def scale_rows_backward_together(
        self, calls: Sequence[RowScalingGradient]
    ) -> list[tuple[Tensor, Tensor]]:
        """That of each, of one device."""

    def row_rounds(self, calls: Sequence[RowScaling]) -> RowRounds | None:
        """What scales these again and again; None where nothing is gained by it."""
