"""Constrained tensors that were computed ahead of their access, and what they are valid for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..ops import streams
from ..ops.fingerprint import fingerprint
from ..torch_internals.hooks import has_hooks
from ..torch_internals.storage import memory_of, version
from .base import Originals, Parametrization
from .circumstances import Circumstances
from .handed_out import Version, counter_of

Contents = tuple[Tensor, Any, int | None, int, tuple[int, ...], bool, bytes | None]


class Checked:
    """Of one model: the forward at whose start nothing else was found to be done at its reads."""

    __slots__ = ("forward",)

    def __init__(self) -> None:
        self.forward: Circumstances | None = None


class PreparedWeight:
    """Of one forward of a model, or of any number of evaluations without gradients."""

    __slots__ = (
        "__weakref__",
        "checked",
        "circumstances",
        "contents",
        "counter",
        "is_training",
        "iterates",
        "originals",
        "outlives_forward",
        "output",
        "state",
        "state_contents",
        "tensor",
        "version",
        "was_read",
    )

    def __init__(
        self,
        originals: Originals,
        tensor: Tensor,
        output: Callable[[], Any],
        parametrization: Parametrization,
        circumstances: Circumstances,
    ) -> None:
        self.originals = originals
        self.outlives_forward = circumstances.frame is None
        # An evaluation that outlives its forward is of u and v, too; all are of a learned scale.
        self.state = self._state_of(parametrization)
        hold = memory_of if self.outlives_forward else Tensor.untyped_storage
        self.contents = [_contents(original, hold) for original in originals]
        self.state_contents = [_contents(tensor, Tensor.untyped_storage) for tensor in self.state]
        self.is_training = parametrization.training
        self.iterates = parametrization.iterates
        self.tensor, self.version = tensor, version(tensor)
        self.output, self.circumstances = output, circumstances
        self.was_read = False
        self.counter: Tensor | None = None  # of changes in place
        self.checked: Checked | None = None

    def again(
        self,
        values: Sequence[tuple[int, bytes | None]],
        tensor: Tensor,
        made: int,
        output: Callable[[], Any],
        circumstances: Circumstances,
    ) -> PreparedWeight:
        """Of another forward, in which nothing but the values differs from this one's.

        Args:
            values: the version of each original, and what its memory holds, if that is looked at.
            made: the tensor's version then.
        """
        other = self.without_tensor()
        other.contents = [
            (each, held, number, address, stride, requires_grad, sample)
            for (each, held, _, address, stride, requires_grad, _), (number, sample) in zip(
                self.contents, values, strict=True
            )
        ]
        other.tensor, other.version = tensor, made
        other.output, other.circumstances = output, circumstances
        other.was_read, other.counter, other.checked = False, None, None
        return other

    def without_tensor(self) -> PreparedWeight:
        """What :meth:`again` takes of this: it holds neither what was computed nor its forward."""
        other = PreparedWeight.__new__(PreparedWeight)
        other.originals, other.contents = self.originals, self.contents
        other.state, other.state_contents = self.state, self.state_contents
        other.outlives_forward = self.outlives_forward
        other.is_training, other.iterates = self.is_training, self.iterates
        return other

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is of."""
        return [*self.originals, *self.state]

    @property
    def frame(self) -> FrameType | None:
        """The forward that it is of."""
        return self.circumstances.frame

    def serving(
        self, originals: Originals, parametrization: Parametrization
    ) -> PreparedWeight | None:
        """This, where an access to ``originals`` here and now gets it."""
        serves = (
            not torch.compiler.is_compiling()
            and are_same(originals, self.originals)
            and version(self.tensor) == self.version
            and self.tensor.dtype == parametrization.output_dtype(originals[-1])
            and self.iterates == parametrization.iterates
            and (not self.state or are_same(self._state_of(parametrization), self.state))
            and self._is_unchanged()
            and self.circumstances.last()
        )
        return self if serves else None

    def read(self, known: dict[str, Any]) -> Tensor | None:
        """The tensor of an evaluation, for a read here and now of the list with these attributes.

        None where an access has more to do.
        """
        parametrizations = known["_modules"]
        only: Any = parametrizations["0"]
        own = only.__dict__  # past Module's attribute lookup
        originals = known["_parameters"] or known["_buffers"]
        if (
            len(parametrizations) != 1
            or own.get("prepared") is not self
            or own["training"] is not self.is_training
            or self.tensor._version != self.version
            or len(originals) != len(self.originals)  # a replica of DataParallel has them elsewhere
            or not all(map(is_, originals.values(), self.originals))
            or (self.state and not are_same(self._state_of(only), self.state))
            or not self._is_unchanged()
        ):
            return None
        forward = None if self.checked is None else self.checked.forward
        # Of a forward hooks were looked for at its start.
        if not (
            forward is not None and forward.is_where(self.circumstances) and forward.last_plainly()
        ) and (has_hooks(known) or has_hooks(own) or not self.circumstances.last_plainly()):
            return None
        self.was_read = True
        tensor: Tensor = self.tensor.detach()
        return tensor

    def handed_out(self, last: Version | None) -> Version | None:
        """The version that was read; None where none was."""
        if not self.was_read:
            return None
        if self.counter is None:
            self.counter = counter_of(self.tensor, last)
        return self.counter, self.version

    def _state_of(self, parametrization: Parametrization) -> Originals:
        if self.outlives_forward:
            return parametrization.state_tensors()
        return parametrization.own_parameters()

    def _is_unchanged(self) -> bool:
        for tensor, held, number, address, stride, requires_grad, sample in self.contents:
            if (
                (number is not None and tensor._version != number)
                or tensor.data_ptr() != address
                or tensor.requires_grad is not requires_grad
                or tensor.stride() != stride
                or (sample is not None and fingerprint(tensor) != sample)
                or (self.outlives_forward and held.expired())
            ):
                return False
        for tensor, _, number, address, _, _, sample in self.state_contents:
            if (number is not None and tensor._version != number) or tensor.data_ptr() != address:
                return False
            if sample is not None and fingerprint(tensor) != sample:
                return False
        return True

    def hand_over(self, originals: Originals, parametrization: Parametrization) -> Tensor:
        """The constrained tensor, for whatever the current stream does with it."""
        output = self.output()
        if self.circumstances.stream is not None:
            made = [each for each in output if isinstance(each, Tensor)]
            streams.hand_over(self.circumstances.stream, *made)
        return parametrization.hand_over(originals, output)


def prepared_evaluation(
    originals: Originals, output: Any, parametrization: Parametrization
) -> PreparedWeight:
    """What later evaluations without gradients get, too."""
    circumstances = Circumstances(output[0].device)
    return PreparedWeight(originals, output[0], lambda: output, parametrization, circumstances)


def are_same(one: Originals, other: Originals) -> bool:
    """Whether both are of the same tensors."""
    return all(map(is_, one, other))


def _contents(tensor: Tensor, hold: Callable[[Tensor], Any]) -> Contents:
    """What tells the values of a tensor from those that it will have.

    No other memory has its address as long as the tensor's own is held, or is known to live.
    """
    return (
        tensor,
        hold(tensor),
        None if tensor.is_inference() else tensor._version,
        tensor.data_ptr(),
        tensor.stride(),
        tensor.requires_grad,
        fingerprint(tensor),
    )
