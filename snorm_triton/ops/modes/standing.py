"""Eager accesses to the weights of a model that stay as they are, from forward to forward."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from .. import streams
from ..autograd import Rescale, buckets
from ..backend import Backend
from ..calls import Access, Call, Iterate, Normalized, Replay
from ..dispatch import place
from ..estimates import Estimates
from ..rounds import Round, Rounds, facts_of
from ..state import write
from .composite import without_autocast

_versions = attrgetter("_version")


class Standing:
    """Accesses of one kind, device and backend, which are not written down anew each time."""

    def __init__(self, backend: Backend, rounds: Rounds, accesses: Sequence[Access]) -> None:
        self._backend = backend
        self.weights = [access.weight for access in accesses]
        self._accesses = accesses
        self._rounds = rounds
        self._dims = [access.dim for access in accesses]
        state = [tensor for access in accesses for tensor in _state_of(access)]
        self._state = state
        self._facts = facts_of(self.weights, state)
        trained = [i for i, weight in enumerate(self.weights) if weight.requires_grad]
        parts = buckets([self.weights[i].nbytes for i in trained])
        nodes = [trained[part] for part in parts] if torch.is_grad_enabled() else []
        self._nodes = [(members, rounds.gradients_of(members)) for members in nodes]

    def holds(self) -> bool:
        """Whether an access to each, here and now, is what was set up."""
        return facts_of(self.weights, self._state) == self._facts

    def __call__(self) -> tuple[list[Tensor], Round]:
        """Make them, and write their state."""
        results, made = without_autocast(self.weights[0].device.type, self._rounds)
        if isinstance(self._accesses[0].step, Iterate) and not made.is_written:
            outputs = map(Normalized, results, *zip(*made.states, strict=True))
            write(self._accesses, list(outputs))
        versions = list(map(_versions, self.weights))
        for members, gradients in self._nodes:
            estimates = Estimates(gradients, made, self._dims, versions)
            weights = [self.weights[i] for i in members]
            computed = self._backend, estimates, [results[i] for i in members]
            for i, weight_sn in zip(members, Rescale.apply(computed, *weights), strict=True):
                results[i] = weight_sn
        return results, made


def standing(accesses: Sequence[Access]) -> Standing | None:
    """These accesses; None where they do not agree, or must be looked at each time."""
    weight = accesses[0].weight
    if torch.is_inference_mode_enabled() or streams.is_capturing(weight.device):
        return None
    placed = [place(access.weight, access.dim, access.backend) for access in accesses]
    backend = placed[0][0]
    calls = []
    for access, (its_backend, dense, view) in zip(accesses, placed, strict=True):
        is_alike = its_backend is backend and dense.device == weight.device
        if not is_alike or dense is not access.weight or not _is_plain(access):
            return None
        taken = access.u, access.v, access.step, access.dtype, access.rescaling
        calls.append(Call(dense.detach(), view, *taken))
    rounds = backend.rounds(calls)
    return None if rounds is None else Standing(backend, rounds, accesses)


def _is_plain(access: Access) -> bool:
    weight, step = access.weight, access.step
    takes_steps = type(step) is Replay or (type(step) is Iterate and step.due is None)
    learns = access.rescaling.learned is not None
    return takes_steps and not learns and weight.numel() > 0 and not weight.is_inference()


def _state_of(access: Access) -> tuple[Tensor, ...]:
    step = access.step
    return (access.u, access.v, step.sigma) if type(step) is Replay else (access.u, access.v)
