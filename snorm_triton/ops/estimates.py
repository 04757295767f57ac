"""What W / sigma and its derivatives are computed from, one weight's or those of a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

from torch import Tensor

from .calls import Call, Normalized
from .matrix_view import MatrixView
from .rescaling import PLAIN, Rescaling
from .rounds import Round, RoundGradients


class Estimate(NamedTuple):
    """What was taken for the spectral norm of a dense weight, read as a matrix along ``dim``.

    The weight is detached, a learned scale is not. u, v and sigma are an access's own, never the
    live buffers, which the next one overwrites.
    """

    weight: Tensor
    version: int
    view: MatrixView
    dim: int
    u: Tensor
    v: Tensor
    sigma: Tensor
    rescaling: Rescaling = PLAIN
    scale_version: int = 0

    @classmethod
    def of(cls, call: Call, dim: int, output: Normalized, rescaling: Rescaling) -> Estimate:
        """What a backend took for ``call``; ``rescaling`` may have a graph."""
        taken = output.u, output.v, output.sigma, rescaling, rescaling.version
        return cls(call.weight, call.weight._version, call.view, dim, *taken)

    def check_versions(self) -> None:
        """Raise RuntimeError where the gradient would be of other values than the forward's."""
        if self.weight._version != self.version:
            raise modified(self.weight)
        if self.rescaling.version != self.scale_version:
            raise modified(self.weight, "the learned scale of a normalized weight")


def modified(weight: Tensor, what: str = "a normalized weight") -> RuntimeError:
    """What to raise where a gradient is to be computed of another weight than the forward's."""
    return RuntimeError(
        f"{what} of shape {tuple(weight.shape)} has been modified by an inplace operation since "
        "the forward whose gradient is computed"
    )


class Estimates(Sequence[Estimate]):
    """Those of some members of a round, each made when it is asked for."""

    def __init__(
        self,
        compute: RoundGradients,
        made: Round,
        dims: Sequence[int],
        versions: Sequence[int],
    ) -> None:
        self._compute = compute
        self._made = made
        self._dims = dims  # by their number in the round, as versions are
        self._versions = versions

    def __len__(self) -> int:
        return len(self._compute.calls)

    @overload
    def __getitem__(self, i: int) -> Estimate: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Estimate]: ...
    def __getitem__(self, i: int | slice) -> Estimate | Sequence[Estimate]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        rescaling = self._compute.calls[i].rescaling
        return Estimate(*self.placed(i), *self._compute.state(self._made, i), rescaling)

    def placed(self, i: int) -> tuple[Tensor, int, MatrixView, int]:
        """The weight, its version, its view and the dimension of its rows."""
        member, call = self._compute.members[i], self._compute.calls[i]
        return call.weight, self._versions[member], call.view, self._dims[member]

    def gradients(self, used: Sequence[int], grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of the weights, from those of the used of the normalized weights, laid out as they."""
        return self._compute(self._made, used, grads)
