"""The parametrizations whose tensor follows from the originals alone: no access changes a state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..torch_internals import functorch
from .base import Originals, Parametrization, Prepared
from .prepared import prepared_evaluation


class Determined(Parametrization):
    """Computed at an access, or as it was prepared; kept in evaluation while nothing changes."""

    def computed(self, *originals: Tensor) -> Tensor:
        """The constrained tensor, computed here and now."""
        raise NotImplementedError

    def forward(self, *originals: Tensor) -> Tensor:
        """The constrained tensor, of the weight's shape and memory layout."""
        prepared: Prepared | None = self.__dict__.get("prepared")  # past Module's attribute lookup
        if prepared is not None:
            serving = prepared.serving(originals, self)
            if serving is not None:
                return serving.hand_over(originals, self)
            if prepared.outlives_forward:
                self.__dict__["prepared"] = None
        weight = self.computed(*originals)
        if not self.training:
            self.keep(originals, weight)
        return weight

    def keep(self, originals: Originals, weight: Tensor) -> None:
        """Keep the weight of an evaluation, if it serves later ones."""
        if self.options.cache_evaluation and self.outlive_forward(originals):
            self.__dict__["prepared"] = prepared_evaluation(originals, (weight,), self)

    def hand_over(self, originals: Originals, output: Any) -> Tensor:
        """The weight as it was computed ahead."""
        if functorch.active():  # to which its graph is unknown
            return self.computed(*originals)
        return super().hand_over(originals, output)
