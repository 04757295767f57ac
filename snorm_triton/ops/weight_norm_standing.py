"""Eager accesses to the weight norms of a model that stay as they are, from forward to forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import streams
from .autograd import buckets
from .backend import Backend
from .modes.composite import without_autocast
from .row_scaling import RowGradients, RowRounds, RowScaling
from .row_scaling_nodes import ScaleRowsOfMany
from .scaled import ScaledTogether
from .weight_norm import WeightNormAccess, is_composite, place


class Standing:
    """Accesses of one device and backend, which are not written down anew each time."""

    def __init__(
        self,
        backend: Backend,
        rounds: RowRounds,
        calls: Sequence[RowScaling],
        accesses: Sequence[WeightNormAccess],
    ) -> None:
        self._backend = backend
        self._rounds = rounds
        self._device_type = calls[0].weight.device.type
        trained = [
            i
            for i, access in enumerate(accesses)
            if access.weight.requires_grad or access.g.requires_grad
        ]
        self._nodes: list[_Node] = []
        parts = buckets([calls[i].weight.nbytes for i in trained])
        for part in parts if torch.is_grad_enabled() else ():
            at = trained[part]
            of_part = at, rounds.gradients_of(at), [accesses[i].dim for i in at]
            originals = [accesses[i].weight for i in at], [accesses[i].g for i in at]
            self._nodes.append((*of_part, *originals))

    def __call__(self) -> list[Tensor]:
        """Make them."""
        results, norms = without_autocast(self._device_type, self._rounds)
        for members, gradients, dims, weights, gs in self._nodes:
            scaled = ScaledTogether(gradients, dims, norms, gs)
            computed = self._backend, scaled, [results[i] for i in members]
            made = ScaleRowsOfMany.apply(computed, *weights, *gs)
            for i, result in zip(members, made, strict=True):
                results[i] = result
        return results


# The numbers of a node's weights, their gradients and dims, and v and g with their graph.
_Node = tuple[list[int], RowGradients, list[int | None], list[Tensor], list[Tensor]]


def standing(accesses: Sequence[WeightNormAccess]) -> Standing | None:
    """These accesses; None where they do not agree, or must be looked at each time."""
    first = accesses[0].weight
    if torch.is_inference_mode_enabled() or streams.is_capturing(first.device):
        return None
    calls = []
    backends = set()
    for access in accesses:
        weight, g, dim, dtype, name = access
        if is_composite(weight, g) or weight.is_inference() or g.is_inference():
            return None
        backend, dense, view = place(weight, dim, name)
        if dense is not weight or not g.is_contiguous() or weight.device != first.device:
            return None
        backends.add(backend)
        calls.append(RowScaling(dense.detach(), view, g.detach(), dtype))
    rounds = backend.row_rounds(calls) if len(backends) == 1 else None
    return None if rounds is None else Standing(backend, rounds, calls, accesses)
