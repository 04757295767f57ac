"""Accesses to the spectral norms of a model, forward after forward, that nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..ops.calls import Access, Iterate, Normalized, Replay, Step
from ..ops.modes.standing import Standing, standing
from ..torch_internals.autograd import backward_id
from . import updates
from .base import evaluations

Member = tuple[dict[str, Any], dict[str, Any], Access, object]


class SpectralRounds:
    """Iterations, or replays, of all members, as they were set up."""

    def __init__(
        self,
        parametrizations: Sequence[Any],
        accesses: Sequence[Access],
        accessed: Standing,
    ) -> None:
        self._parametrizations = parametrizations
        self._accesses = accesses
        self._standing = accessed
        self._iterates = isinstance(accesses[0].step, Iterate)
        self._policy = parametrizations[0].options.power_iter
        self._memories = [updates.memories_of(each) for each in parametrizations]
        self._members: list[Member] = [
            (each.__dict__, each._buffers, access, each.options)
            for each, access in zip(parametrizations, accesses, strict=True)
        ]

    def holds(self) -> bool:
        """Whether nothing is otherwise."""
        is_same = self._is_due() and self._standing.holds()
        return is_same and (self._policy == "access" or self._is_due_by_update())

    def __call__(self) -> tuple[list[Tensor], Callable[[int, Tensor], Normalized]]:
        """A round, and what is noted of it."""
        weights, made = self._standing()
        for known, *_ in self._members:
            known["is_sigma_known"] = True
            if self._iterates:
                known["_evaluated"] = None
        if self._iterates and self._policy == "update":
            updates.have_iterated(
                self._parametrizations, self._standing.weights, self._memories, made
            )
        return weights, made.output

    def _is_due(self) -> bool:
        if evaluations.depth or backward_id() != -1:
            return False
        for known, buffers, (_, u, v, _, step, *_), options in self._members:
            if (
                buffers["_u"] is not u
                or buffers["_v"] is not v
                or buffers["_sigma"] is not _sigma_of(step)
                or known["options"] is not options
                or not known["training"]
                or known.get("_drawn") is not None
                # An evaluation is not for an access that is due.
                or not ((prepared := known.get("prepared")) is None or prepared.outlives_forward)
            ):
                return False
        return True

    def _is_due_by_update(self) -> bool:
        for each, weight, memories in zip(
            self._parametrizations, self._standing.weights, self._memories, strict=True
        ):
            if updates.is_due(each, weight, memories) != self._iterates:
                return False
            if not self._iterates and not updates.notices_all(each):
                return False
        return True


def _sigma_of(step: Step) -> object:
    """The live one, if the step takes or writes it."""
    if isinstance(step, Iterate):
        return None if step.live is None else step.live[2]
    return step.sigma if isinstance(step, Replay) else None


def spectral_rounds(
    parametrizations: Sequence[Any], accesses: Sequence[Access]
) -> SpectralRounds | None:
    """What repeats these accesses; None where they must be looked at each time."""
    kinds = {type(access.step) for access in accesses}
    policies = {each.options.power_iter for each in parametrizations}
    if len(kinds) > 1 or len(policies) > 1:
        return None
    for each, (_, u, v, _, step, *_) in zip(parametrizations, accesses, strict=True):
        buffers = each._buffers
        is_live = buffers["_u"] is u and buffers["_v"] is v and not u.requires_grad
        options = each.options
        if not is_live or not each.training or options.autocast_output:
            return None
        if _sigma_of(step) is not buffers["_sigma"]:
            return None
    accessed = standing(accesses)
    return None if accessed is None else SpectralRounds(parametrizations, accesses, accessed)
