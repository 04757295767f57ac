"""The same accesses to a model's weights, forward after forward: set up once, made by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Protocol

import torch
from torch import Tensor

from . import streams
from .calls import Call, GradientCall, Gradients, Normalized, State

Together = Callable[[Sequence[Call]], list[Normalized]]
Backwards = Callable[[Sequence[GradientCall]], Sequence[Gradients]]


_of_weights = attrgetter("dtype", "shape", "requires_grad")


def facts_of(weights: Sequence[Tensor], state: Sequence[Tensor] = ()) -> tuple[object, ...]:
    """What an access to these weights, of such a state, depends on but for their values."""
    device = weights[0].device
    return (
        list(map(Tensor.data_ptr, weights)),
        list(map(Tensor.data_ptr, state)),
        list(map(_of_weights, weights)),
        list(map(Tensor.stride, weights)),
        list(map(Tensor.is_neg, weights)),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        streams.handle(device),
        streams.is_capturing(device),
    )


class Round:
    """The u, v and sigma that the members of one round took, as tensors if they are asked for.

    A node of the graph holds it: it does not hold what that node leads to.
    """

    def __init__(
        self, memory: Tensor | None, states: Callable[[], list[State]], is_written: bool
    ) -> None:
        self.memory = memory  # in which all states lie, if they lie together
        self.is_written = is_written  # the live state too
        self._states: list[State] | None = None
        self._make_states = states

    @property
    def states(self) -> list[State]:
        """Of each member."""
        if self._states is None:
            self._states = self._make_states()
        return self._states

    def output(self, i: int, weight_sn: Tensor) -> Normalized:
        """All that came of one member, whose W / sigma this is."""
        return Normalized(weight_sn, *self.states[i], self.is_written)


class Rounds(Protocol):
    """What makes the same calls again and again."""

    calls: Sequence[Call]

    def __call__(self) -> tuple[list[Tensor], Round]:
        """A round of them: W / sigma of each, and what it took."""

    def gradients_of(self, members: Sequence[int]) -> RoundGradients:
        """What computes the gradients of these; it keeps no other weights."""


class RoundGradients:
    """The gradients of some members of a round."""

    def __init__(self, calls: Sequence[Call], members: Sequence[int], gradients: Backwards) -> None:
        self.calls = [calls[i] for i in members]
        self.members = members
        self._gradients = gradients

    def __call__(
        self, made: Round, used: Sequence[int], grads: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """As ``rescale_backward_together``, of those used, grads laid out as they."""
        calls = [
            GradientCall(grad, call.weight, call.view, *self.state(made, i), call.rescaling)
            for i, grad in zip(used, grads, strict=True)
            for call in (self.calls[i],)
        ]
        return [each.weight for each in self._gradients(calls)]

    def state(self, made: Round, i: int) -> State:
        """What one of them took."""
        return made.states[self.members[i]]


class EachTime:
    """Rounds that are set up anew each time, of a backend that gains nothing by less."""

    def __init__(self, calls: Sequence[Call], together: Together, gradients: Backwards) -> None:
        self.calls = calls
        self._together = together
        self._gradients = gradients

    def __call__(self) -> tuple[list[Tensor], Round]:
        made = self._together(self.calls)
        states = [each.state for each in made]
        weights = [each.weight_sn for each in made]
        return weights, Round(None, lambda: states, made[0].is_written)

    def gradients_of(self, members: Sequence[int]) -> RoundGradients:
        return RoundGradients(self.calls, members, self._gradients)
