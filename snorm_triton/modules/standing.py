"""What a whole model's forward prepares, set up once for as long as nothing about it changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import is_
from types import FrameType
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from ..parametrizations.base import Originals, Parametrization, Repeated
from ..parametrizations.prepared import Circumstances, PreparedWeight
from ..torch_internals.parametrize import is_caching
from .access import HOOKS, ConstrainedList

ATTRIBUTE = "_snorm_triton_standing"  # of the model
_MANY = 4  # ways that forwards take turns in: trained or frozen, iterating or not

# A parametrization, what it is of, its list, and its access.
Chosen = tuple[Parametrization, Originals, ParametrizationList, Any]
Kinds = Mapping[type[Parametrization], Sequence[Chosen]]


class Standing:
    """The ways in which the last forwards of a model were prepared; belongs to it alone."""

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
        return any(way.forget(forward) for way in self.ways)

    def add(self, model: nn.Module, kinds: Kinds) -> None:
        """Set up what a forward has just been prepared by, ever more rarely if that is no use."""
        self.misses += 1
        if self.misses & (self.misses - 1) == 0:
            way = Way.of(model, kinds)
            if way is not None:
                self.ways = [way, *self.ways[: _MANY - 1]]

    def __reduce__(self) -> tuple[Any, ...]:
        return Standing, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Standing:
        return Standing()


class Way:
    """One of them: a model's modules, and the accesses of each kind of parametrization."""

    def __init__(self, model: nn.Module, kinds: list[tuple[Repeated, Sequence[Chosen]]]) -> None:
        self._kinds = kinds
        modules = list(model.modules())
        self._children = [module._modules for module in modules]
        self._then = [dict(each) for each in self._children]
        self._modules = modules[1:]  # not the model, in whose attributes this is
        self._types = list(map(type, self._modules))
        members = [member for _, of_kind in kinds for member in of_kind]
        self._originals = [(each.__dict__, originals) for _, originals, each, _ in members]
        pairs = [(each, parametrizations) for each, _, parametrizations, _ in members]
        self._hooks = [module.__dict__[name] for pair in pairs for module in pair for name in HOOKS]
        self._read = [
            type(parametrizations) is ConstrainedList
            and parametrizations.watched is not None
            and not each.options.autocast_output
            for each, parametrizations in pairs
        ]
        self._prepared: list[Any] = [each.__dict__["prepared"] for each, *_ in members]
        self._forward: FrameType | None = None

    @classmethod
    def of(cls, model: nn.Module, kinds: Kinds) -> Way | None:
        """As this forward was prepared; None where it cannot be done again."""
        repeated = []
        for kind, members in kinds.items():
            rounds = kind.rounds([each for each, *_ in members], [access for *_, access in members])
            # What an outer forward has prepared stays that one's.
            mine = all(isinstance(each.prepared, PreparedWeight) for each, *_ in members)
            if rounds is None or not mine:
                return None
            repeated.append((rounds, members))
        return cls(model, repeated)

    def prepare(self, model: nn.Module, forward: FrameType) -> bool:
        """Prepare the weights for this forward, unless anything is otherwise."""
        if not self._fits(model) or not all(repeated.holds() for repeated, _ in self._kinds):
            return False
        self._forward = forward
        has_hooks = any(self._hooks)
        position = 0
        for repeated, members in self._kinds:
            made = repeated()
            circumstances = Circumstances(members[0][1][0].device, forward)
            for i, (each, _, parametrizations, _) in enumerate(members):
                output = partial(made.output, i)
                prepared = self._prepared[position].again(made.weights[i], output, circumstances)
                each.__dict__["prepared"] = prepared
                if self._read[position] and not has_hooks:
                    parametrizations.__dict__["_ready"] = prepared
                position += 1
        return True

    def _fits(self, model: nn.Module) -> bool:
        return (
            self._children[0] is model._modules
            and self._children == self._then
            and list(map(type, self._modules)) == self._types
            and not is_caching()
            and all(self._originals_are())
        )

    def _originals_are(self) -> Iterator[bool]:
        for known, originals in self._originals:
            yield all(map(is_, (known["_parameters"] or known["_buffers"]).values(), originals))

    def forget(self, forward: FrameType) -> bool:
        """Forget what was prepared for this forward, if it was."""
        if self._forward is not forward:
            return False
        self._forward = None
        for _, members in self._kinds:
            for each, _, parametrizations, _ in members:
                prepared = each.__dict__.get("prepared")
                if isinstance(prepared, PreparedWeight) and prepared.frame is forward:
                    each.__dict__["prepared"] = None
                if isinstance(parametrizations, ConstrainedList):
                    parametrizations.put_away()
        return True
