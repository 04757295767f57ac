"""What W / sigma and its derivatives are computed from, one weight's or those of a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

from torch import Tensor

from .matrix_view import MatrixView
from .rounds import Round, Rounds


class Estimate(NamedTuple):
    """What was taken for the spectral norm of a dense weight, read as a matrix along ``dim``.

    The weight is detached. u, v and sigma are an access's own, never the live buffers, which the
    next one overwrites.
    """

    weight: Tensor
    version: int
    view: MatrixView
    dim: int
    u: Tensor
    v: Tensor
    sigma: Tensor


class Estimates(Sequence[Estimate]):
    """Those of some members of a round, each made when it is asked for."""

    def __init__(
        self,
        rounds: Rounds,
        made: Round,
        members: Sequence[int],
        dims: Sequence[int],
        versions: Sequence[int],
    ) -> None:
        self._rounds = rounds
        self._made = made
        self._members = members
        self._dims = dims
        self._versions = versions

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, i: int) -> Estimate: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Estimate]: ...
    def __getitem__(self, i: int | slice) -> Estimate | Sequence[Estimate]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        weight, version, view, dim = self.laid_out(i)
        return Estimate(weight, version, view, dim, *self._made.states[self._members[i]])

    def laid_out(self, i: int) -> tuple[Tensor, int, MatrixView, int]:
        """The weight, its version, its view and the dimension of its rows."""
        member = self._members[i]
        weight, view, *_ = self._rounds.calls[member]
        return weight, self._versions[member], view, self._dims[member]

    def gradients(self, used: Sequence[int], grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of the weights, from those of the used of the normalized weights, laid out as they."""
        members = [self._members[i] for i in used]
        return self._rounds.gradients(self._made, members, grads)
