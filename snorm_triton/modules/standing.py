"""What a whole model's forward prepares, set up once for as long as nothing about it changes."""

from __future__ import annotations

from collections.abc import Sequence
from types import FrameType
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from ..parametrizations.base import Originals, Parametrization
from .ways import Kinds, Member, Recomputing, Reusing, Way

ATTRIBUTE = "_snorm_triton_standing"  # of the model
_MANY = 4  # ways that forwards take turns in: trained or frozen, iterating or not
_TRIED = 16  # forwards in a row that each were otherwise than any before


class Standing:
    """The ways in which the last forwards of a model were prepared; belongs to it alone.

    It keeps no memory that the model does not: a way that is no longer of the model's own modules
    and tensors ends at the next forward that finds none to fit, or as soon as they are moved.
    """

    def __init__(self) -> None:
        self.ways: list[Way] = []
        self.misses = 0

    def prepare(self, model: nn.Module, forward: FrameType) -> bool:
        """Prepare the weights as for one of them; False where none fits, and nothing is done."""
        for way in self.ways:
            if way.prepare(model, forward):
                self.misses = 0
                return True
        return False

    def forget(self, forward: FrameType) -> bool:
        """Forget what was prepared for this forward, if that was done here."""
        done = [way.forget(forward) for way in self.ways]  # each: one may be over since long
        return any(done)

    def add(self, model: nn.Module, kinds: Kinds, served: Sequence[Member]) -> None:
        """Set up what a forward has just been prepared by, ever more rarely if that is no use.

        Args:
            kinds: the accesses that were made.
            served: what needed none.
        """
        self.misses += 1
        members = [*served, *(each[:3] for chosen in kinds.values() for each in chosen)]
        if not all(_are_kept(*each) for each in members):
            return
        self.ways = [way for way in self.ways if way.belongs_to(model)]
        if self.misses > _TRIED and self.misses & (self.misses - 1):
            return
        way: Way | None = None
        if kinds and not served:
            way = Recomputing.of(model, kinds)
        elif (
            served
            and not kinds
            and all(each.prepared and each.prepared.outlives_forward for each, *_ in served)
        ):
            way = Reusing(model, served)
        if way is not None:
            self.ways = [way, *self.ways[: _MANY - 1]]
            for each, *_ in members:
                each.followers.add(self)

    def forget_all(self) -> None:
        """Something of the model is moved."""
        self.ways = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Standing, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Standing:
        return Standing()


def _are_kept(
    parametrization: Parametrization, originals: Originals, parametrizations: ParametrizationList
) -> bool:
    """Whether they last, and tell of changes: not so what functional_call brings, or inference."""
    parameters = *parametrizations._parameters.values(), *parametrization.own_parameters()
    tensors = *originals, *parametrization.state_tensors()
    return all(isinstance(each, nn.Parameter) for each in parameters) and all(
        each.is_leaf and not each.is_inference() for each in tensors
    )
