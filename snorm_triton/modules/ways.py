"""How a forward of a model was prepared, to be done again as long as nothing is otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter, is_
from types import FrameType
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..ops.fingerprint import fingerprint
from ..parametrizations import updates
from ..parametrizations.base import Originals, Parametrization, Repeated
from ..parametrizations.circumstances import Circumstances
from ..parametrizations.prepared import Checked, PreparedWeight
from ..parametrizations.prepared_round import CurrentRound, Output, PreparedMember, PreparedRound
from ..torch_internals.hooks import HOOKS
from ..torch_internals.parametrize import is_caching
from .access import ConstrainedList, held_originals

# A parametrization, what it is of, and its list; and its access.
Member = tuple[Parametrization, Originals, ParametrizationList]
Chosen = tuple[Parametrization, Originals, ParametrizationList, Any]
Kinds = Mapping[type[Parametrization], Sequence[Chosen]]
_version = attrgetter("_version")


class Way:
    """A model's modules, and what is handed out in its forward."""

    def __init__(self, model: nn.Module, members: Sequence[Member]) -> None:
        modules = list(model.modules())
        self._children = [module._modules for module in modules]
        self._then = [dict(each) for each in self._children]
        self._modules = modules[1:]  # not the model, in whose attributes this is
        self._types = list(map(type, self._modules))
        self._originals = [
            (each.__dict__, list(held_originals(each)), originals) for _, originals, each in members
        ]
        self._members = [each.__dict__ for each, *_ in members]
        pairs = [(each, parametrizations) for each, _, parametrizations in members]
        self._hooks = [module.__dict__[name] for pair in pairs for module in pair for name in HOOKS]
        self._held = list(self._tensors_now())
        self._addresses = list(map(Tensor.data_ptr, self._held))

    def belongs_to(self, model: nn.Module) -> bool:
        """Whether all that it holds is the model's, whatever the mode."""
        now = list(self._tensors_now())
        return (
            self._is_of(model)
            and len(now) == len(self._held)
            and all(map(is_, now, self._held))
            and list(map(Tensor.data_ptr, now)) == self._addresses
        )

    def _tensors_now(self) -> Iterator[Tensor]:
        for (own, *_), known in zip(self._originals, self._members, strict=True):
            for each in (own, known):
                for tensors in (each["_parameters"], each["_buffers"]):
                    yield from (tensor for tensor in tensors.values() if tensor is not None)

    def prepare(self, model: nn.Module, forward: FrameType) -> bool:
        """Prepare the weights for this forward, unless anything is otherwise."""
        raise NotImplementedError

    def _fits(self, model: nn.Module) -> bool:
        return self._is_of(model) and not is_caching() and self._originals_are()

    def _is_of(self, model: nn.Module) -> bool:
        return (
            self._children[0] is model._modules
            and self._children == self._then
            and list(map(type, self._modules)) == self._types
        )

    def _originals_are(self) -> bool:
        for known, names, originals in self._originals:
            held = known["_parameters"] or known["_buffers"]
            if [*held] != names or not all(map(is_, held.values(), originals)):
                return False
        return True

    def forget(self, forward: FrameType) -> bool:
        """Forget what was prepared for this forward, if it was."""
        raise NotImplementedError


class Recomputing(Way):
    """The accesses of each kind of parametrization are made again."""

    def __init__(
        self,
        model: nn.Module,
        kinds: Sequence[Repeated],
        members: Sequence[Sequence[Member]],
        likes: Sequence[PreparedWeight],
    ) -> None:
        in_order = [member for kind in members for member in kind]
        super().__init__(model, in_order)
        self._current = CurrentRound()
        self._kinds = kinds
        self._tensors = [each for _, originals, _ in in_order for each in originals]
        self._is_sampled = any(fingerprint(each) is not None for each in self._tensors)
        self._prepared: list[PreparedMember] = []
        first = 0
        for k, kind in enumerate(members):
            for i, (each, originals, _) in enumerate(kind):
                number = len(self._prepared)
                mine = PreparedMember(likes[number], each, self._current, number, (k, i), first)
                self._prepared.append(mine)
                first += len(originals)
        self._lists = [
            (each, prepared)
            for (only, _, each), prepared in zip(in_order, self._prepared, strict=True)
            if type(each) is ConstrainedList and not only.options.autocast_output
        ]

    @classmethod
    def of(cls, model: nn.Module, kinds: Kinds) -> Recomputing | None:
        """As this forward was prepared; None where it cannot be done again."""
        repeated: list[Repeated] = []
        likes: list[PreparedWeight] = []
        for kind, chosen in kinds.items():
            rounds = kind.rounds([each for each, *_ in chosen], [access for *_, access in chosen])
            all_prepared: list[Any] = [each.prepared for each, *_ in chosen]
            # What an outer forward has prepared stays that one's.
            if rounds is None or not all(
                isinstance(prepared, PreparedWeight) and not prepared.state
                for prepared in all_prepared
            ):
                return None
            repeated.append(rounds)
            likes += all_prepared
        members = [[each[:3] for each in chosen] for chosen in kinds.values()]
        return cls(model, repeated, members, likes)

    def prepare(self, model: nn.Module, forward: FrameType) -> bool:
        if self._current.now is not None and self._current.now.circumstances.are_over():
            self._end()  # a KeyboardInterrupt has passed the hook by
        if not self._fits(model) or not all(repeated.holds() for repeated in self._kinds):
            return False
        common = Circumstances(self._tensors[0].device, forward)
        tensors: list[Tensor] = []
        outputs: list[Output] = []
        for repeated in self._kinds:
            weights, output = repeated()
            tensors += weights
            outputs.append(output)
        originals, is_sampled = self._tensors, self._is_sampled
        self._current.now = PreparedRound(tensors, outputs, originals, is_sampled, common)
        for known, prepared in zip(self._members, self._prepared, strict=True):
            known["prepared"] = prepared
        if not any(self._hooks):
            for each, prepared in self._lists:
                each.hand_out(prepared)
        return True

    def forget(self, forward: FrameType) -> bool:
        made = self._current.now
        if made is None:
            return False
        is_mine = made.circumstances.frame is forward
        # After an exception hooks are called from another frame than that of the forward.
        if is_mine or made.circumstances.are_over():
            self._end()
        return is_mine

    def _end(self) -> None:
        for each, _ in self._lists:
            each.put_away()
        for known, prepared in zip(self._members, self._prepared, strict=True):
            if known.get("prepared") is prepared:
                known["prepared"] = None
        self._current.now = None


class Reusing(Way):
    """Nothing is to be computed: evaluations without gradients serve as long as nothing changes.

    It does not keep them: they are given back as soon as their parametrizations want others.
    """

    def __init__(self, model: nn.Module, members: Sequence[Member]) -> None:
        super().__init__(model, members)
        all_prepared: list[Any] = [each.prepared for each, *_ in members]
        self._prepared = list(map(ref, all_prepared))
        self._tensors = [tensor for each in all_prepared for tensor in each.tensors]
        self._facts = self._facts_now()
        self._modes = self._modes_now()
        self._checked = Checked()
        for each in all_prepared:
            each.checked = self._checked

    def _modes_now(self) -> list[bool]:
        return [known["training"] for known in self._members]

    def belongs_to(self, model: nn.Module) -> bool:
        return super().belongs_to(model) and self._is_kept()

    def _is_kept(self) -> bool:
        for known, evaluation in zip(self._members, self._prepared, strict=True):
            prepared = evaluation()
            if prepared is None or known["prepared"] is not prepared:
                return False
        return True

    def _facts_now(self) -> tuple[object, ...]:
        return (
            list(map(Tensor.data_ptr, self._tensors)),
            list(map(_version, self._tensors)),
            updates.steps,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )

    def prepare(self, model: nn.Module, forward: FrameType) -> bool:
        if any(map(Tensor.is_inference, self._tensors)):  # through `.data`: it has no version
            return False
        if self._facts_now() != self._facts or not self._fits(model):
            return False
        if not self._is_kept() or self._modes_now() != self._modes:
            return False
        if not any(self._hooks):
            self._checked.forward = Circumstances(self._tensors[0].device, forward)
        return True

    def forget(self, forward: FrameType) -> bool:
        """Nothing was prepared."""
        checked = self._checked.forward
        if checked is None:
            return False
        is_mine = checked.frame is forward
        if is_mine or checked.are_over():
            self._checked.forward = None
        return is_mine
