"""A constrained tensor that compiled code has computed ahead of its accesses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Originals, Parametrization
from .prepared import are_same


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

    def serving(
        self, originals: Originals, parametrization: Parametrization
    ) -> TracedWeight | None:
        """This, where an access to ``originals`` gets it."""
        serves = (
            torch.compiler.is_compiling()
            and are_same(originals, self.originals)
            and self.tensor.dtype == parametrization.output_dtype(originals[-1])
            and parametrization.training == self.is_training
            and (self.with_grad or not torch.is_grad_enabled())
        )
        return self if serves else None

    def hand_over(self, originals: Originals, parametrization: Parametrization) -> Tensor:
        """The constrained tensor: the compiler orders what is done with it."""
        return self.tensor
