"""The same accesses to a model's weights, forward after forward: set up once, made by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from .calls import Call, GradientCall, Normalized, State

Together = Callable[[Sequence[Call]], list[Normalized]]
Gradients = Callable[[Sequence[GradientCall]], Sequence[Tensor]]


class Round:
    """What came of one round: W / sigma of each weight, and, if they are asked for, its states."""

    def __init__(
        self,
        weights: list[Tensor],
        memory: Sequence[Tensor],
        states: Callable[[], list[State]],
        is_written: bool,
    ) -> None:
        self.weights = weights
        self.memory = memory  # in which it all lies
        self.is_written = is_written  # the live state too
        self._states: list[State] | None = None
        self._make_states = states

    @property
    def states(self) -> list[State]:
        """The u, v and sigma that each took."""
        if self._states is None:
            self._states = self._make_states()
        return self._states

    def output(self, i: int) -> Normalized:
        """All that came of one member."""
        return Normalized(self.weights[i], *self.states[i], self.is_written)


class Rounds(Protocol):
    """What makes the same calls again and again."""

    calls: Sequence[Call]

    def __call__(self) -> Round:
        """A round of them."""

    def gradients(
        self, made: Round, members: Sequence[int], grads: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """As ``rescale_backward_together``, of these members of a round, grads laid out as they."""


def gradient_calls(
    calls: Sequence[Call], made: Round, members: Sequence[int], grads: Sequence[Tensor]
) -> list[GradientCall]:
    """What a backend is asked for the gradients of these members of a round."""
    return [
        GradientCall(grad, calls[i].weight, calls[i].view, *made.states[i])
        for i, grad in zip(members, grads, strict=True)
    ]


class EachTime:
    """Rounds that are set up anew each time, of a backend that gains nothing by less."""

    def __init__(self, calls: Sequence[Call], together: Together, gradients: Gradients) -> None:
        self.calls = calls
        self._together = together
        self._gradients = gradients

    def __call__(self) -> Round:
        made = self._together(self.calls)
        weights = [each.weight_sn for each in made]
        states = [each.state for each in made]
        memory = [tensor for each in made for tensor in each[:4]]
        return Round(weights, memory, lambda: states, made[0].is_written)

    def gradients(
        self, made: Round, members: Sequence[int], grads: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        return self._gradients(gradient_calls(self.calls, made, members, grads))
