"""Accesses to the weight norms of a model, forward after forward, that nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops import weight_norm
from ..ops.rounds import facts_of
from ..ops.weight_norm import WeightNormAccess
from ..ops.weight_norm_standing import standing
from .base import Parametrization


class WeightNormRounds:
    """The accesses of all members, in training."""

    def __init__(
        self, parametrizations: Sequence[Parametrization], accesses: Sequence[WeightNormAccess]
    ) -> None:
        self._again = standing(accesses) or partial(weight_norm.normalize_together, accesses)
        self._members = [(each.__dict__, each.options) for each in parametrizations]
        self._originals = [x for access in accesses for x in (access.weight, access.g)]
        self._facts = facts_of(self._originals)

    def holds(self) -> bool:
        """Whether nothing is otherwise."""
        with_grad = torch.is_grad_enabled()
        for known, options in self._members:
            if not known["training"] or known["options"] is not options:
                return False
            prepared = known.get("prepared")
            # An evaluation is not for an access with gradients.
            if prepared is not None and not (prepared.outlives_forward and with_grad):
                return False
        return facts_of(self._originals) == self._facts

    def __call__(self) -> tuple[list[Tensor], Callable[[int, Tensor], Any]]:
        """A round of them."""
        return self._again(), _output


def _output(i: int, weight: Tensor) -> tuple[Tensor]:
    return (weight,)


def weight_norm_rounds(
    parametrizations: Sequence[Parametrization], accesses: Sequence[WeightNormAccess]
) -> WeightNormRounds | None:
    """What repeats these accesses; None where they must be looked at each time."""
    if torch.is_inference_mode_enabled():
        return None
    if not all(each.training and not each.options.autocast_output for each in parametrizations):
        return None
    return WeightNormRounds(parametrizations, accesses)
