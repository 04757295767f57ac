"""What ``g v / |v|`` and its derivatives are computed from, one weight's or those of a round."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple, overload

from torch import Tensor

from .estimates import modified
from .matrix_view import MatrixView, like_weight
from .row_scaling import RowGradients

_version = attrgetter("_version")


class Scaled(NamedTuple):
    """What the gradient of a scaled weight takes; its tensors are dense, and have no graph."""

    weight: Tensor
    view: MatrixView
    g: Tensor
    norms: Tensor
    dim: int | None
    versions: tuple[int, int]


class ScaledTogether(Sequence[Scaled]):
    """Those of some members of a round, each made when it is asked for."""

    def __init__(
        self,
        compute: RowGradients,
        dims: Sequence[int | None],
        norms: Tensor,  # of the whole round
        gs: Sequence[Tensor],
    ) -> None:
        self._compute = compute
        self._dims = dims
        self._norms = norms
        self._weights = [call.weight for call in compute.calls]
        self._versions = list(map(_version, self._weights)), list(map(_version, gs))

    def __len__(self) -> int:
        return len(self._weights)

    @overload
    def __getitem__(self, i: int) -> Scaled: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Scaled]: ...
    def __getitem__(self, i: int | slice) -> Scaled | Sequence[Scaled]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        weight, view, g, _ = self._compute.calls[i]
        norms = self._compute.norms_of(i, self._norms)
        of_weights, of_gs = self._versions
        return Scaled(weight, view, g, norms, self._dims[i], (of_weights[i], of_gs[i]))

    def gradients(
        self, grads: Sequence[Tensor | None], gs: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Those of all weights, then of all ``gs``, from those that came of the scaled weights."""
        used = [i for i, grad in enumerate(grads) if grad is not None]
        of_weights, of_gs = self._versions
        if (list(map(_version, self._weights)), list(map(_version, gs))) != self._versions:
            for i in used:
                if (self._weights[i]._version, gs[i]._version) != (of_weights[i], of_gs[i]):
                    raise modified(self._weights[i])
        calls = self._compute.calls
        laid_out = [
            like_weight(grad, self._weights[i], calls[i].view, self._dims[i])
            for i, grad in enumerate(grads)
            if grad is not None
        ]
        result: list[Tensor | None] = [None] * (2 * len(grads))
        of_used = self._compute(self._norms, used, laid_out)
        for i, (of_weight, of_g) in zip(used, of_used, strict=True):
            result[i], result[len(grads) + i] = of_weight, of_g
        return result
