"""The tensors that forward after forward of a model computes together, ahead of their accesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..ops.fingerprint import fingerprint
from .base import Originals, Parametrization
from .circumstances import Circumstances
from .handed_out import Version, counter_of
from .prepared import PreparedWeight

Output = Callable[[int, Tensor], Any]  # all that came of one member of a kind, by its number
_version = attrgetter("_version")


class PreparedRound:
    """Those of one forward, in lists: an object for each would take longer than to compute it."""

    __slots__ = ("circumstances", "made", "outputs", "samples", "tensors", "versions", "was_read")

    def __init__(
        self,
        tensors: Sequence[Tensor],
        outputs: Sequence[Output],
        originals: Sequence[Tensor],
        is_sampled: bool,
        circumstances: Circumstances,
    ) -> None:
        self.tensors, self.outputs = tensors, outputs
        self.made = list(map(_version, tensors))
        self.versions = list(map(_version, originals))
        self.samples = list(map(fingerprint, originals)) if is_sampled else None
        self.circumstances = circumstances
        self.was_read = [False] * len(tensors)


class CurrentRound:
    """Of one model: the round that is, while a forward of it runs."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: PreparedRound | None = None


class PreparedMember:
    """The tensor of one parametrization in the round that its model is in, if it is in one.

    Args:
        like: what an earlier forward has prepared, the values apart.
        parametrization: what it is prepared for.
        current: the model's.
        number: the tensor's in a round.
        kind: the number of its output, and its own number there.
        first: the number of the first of its originals in a round.
    """

    __slots__ = ("_current", "_first", "_kind", "_known", "_like", "_number", "_originals")

    outlives_forward = False

    def __init__(
        self,
        like: PreparedWeight,
        parametrization: Parametrization,
        current: CurrentRound,
        number: int,
        kind: tuple[int, int],
        first: int,
    ) -> None:
        self._like = like.without_tensor()
        self._known = parametrization.__dict__
        self._current = current
        self._number, self._kind, self._first = number, kind, first
        self._originals = [
            (each, first + i, address, stride, requires_grad)
            for i, (each, _, _, address, stride, requires_grad, _) in enumerate(like.contents)
        ]

    @property
    def frame(self) -> FrameType | None:
        """The forward that it is of; None between forwards."""
        made = self._current.now
        return None if made is None else made.circumstances.frame

    def read(self, known: dict[str, Any]) -> Tensor | None:
        """The tensor as it is, for a read here and now of the list with these attributes.

        None where an access has more to do.
        """
        made = self._current.now
        if made is None:
            return None
        tensor, own = made.tensors[self._number], self._known
        originals = known["_parameters"] or known["_buffers"]
        parametrizations = known["_modules"]
        if (
            len(parametrizations) != 1
            or parametrizations["0"].__dict__ is not own
            or own.get("prepared") is not self
            or own["training"] is not self._like.is_training
            or tensor._version != made.made[self._number]
            or len(originals)
            != len(self._originals)  # a replica of DataParallel has them elsewhere
            or not made.circumstances.last_plainly()
        ):
            return None
        for now, (then, i, address, stride, requires_grad) in zip(
            originals.values(), self._originals, strict=True
        ):
            if (
                now is not then
                or then._version != made.versions[i]
                or then.data_ptr() != address
                or then.requires_grad is not requires_grad
                or then.stride() != stride
                or (made.samples is not None and fingerprint(then) != made.samples[i])
            ):
                return None
        made.was_read[self._number] = True
        return tensor if made.circumstances.with_grad else tensor.detach()

    def handed_out(self, last: Version | None) -> Version | None:
        """The version that was read; None where none was."""
        made = self._current.now
        if made is None or not made.was_read[self._number]:
            return None
        return counter_of(made.tensors[self._number], last), made.made[self._number]

    def serving(
        self, originals: Originals, parametrization: Parametrization
    ) -> PreparedWeight | None:
        """What serves an access to ``originals`` here and now: this may end in another thread."""
        if torch.compiler.is_compiling():
            return None
        whole = self._whole()
        return None if whole is None else whole.serving(originals, parametrization)

    def _whole(self) -> PreparedWeight | None:
        made = self._current.now
        if made is None:
            return None
        tensor, (kind, number) = made.tensors[self._number], self._kind
        mine = slice(self._first, self._first + len(self._originals))
        samples = made.samples or [None] * len(made.versions)
        values = list(zip(made.versions[mine], samples[mine], strict=True))
        of_this = made.made[self._number], lambda: made.outputs[kind](number, tensor)
        return self._like.again(values, tensor, *of_this, made.circumstances)
