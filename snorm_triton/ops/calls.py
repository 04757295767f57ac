"""What an access to a weight computes, and what comes of it: plain values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .matrix_view import MatrixView
from .rescaling import PLAIN, Rescaling


class State(NamedTuple):
    """The singular vectors and sigma that a weight is divided by: shapes (M,), (N,) and ()."""

    u: Tensor
    v: Tensor
    sigma: Tensor


# u, v and sigma as a parametrization holds them, or an access starts from them.
Live = tuple[Tensor, Tensor, Tensor]


class Iterate(NamedTuple):
    """``n`` power iterations from u and v; their results overwrite ``live``, if there is any."""

    n: int
    live: Live | None = None
    # Of compiled code: iterate only where it is not zero, and then make it zero. Else replay.
    due: Tensor | None = None


class Replay(NamedTuple):
    """Take ``sigma`` as it is, with u and v."""

    sigma: Tensor


class Evaluate(NamedTuple):
    """sigma = u^T W v of u and v made unit vectors, which are divided by ``eps`` at least."""

    eps: float


Step = Iterate | Replay | Evaluate


class Access(NamedTuple):
    """One access to a weight of any layout, known to be right: what it starts from and its step.

    ``dtype`` is that of the result.
    """

    weight: Tensor
    u: Tensor
    v: Tensor
    dim: int
    step: Step
    dtype: torch.dtype
    backend: str = "auto"
    rescaling: Rescaling = PLAIN


class Call(NamedTuple):
    """What a backend is asked for: an access to a dense weight, of which no gradient is taken."""

    weight: Tensor
    view: MatrixView
    u: Tensor
    v: Tensor
    step: Step
    dtype: torch.dtype
    rescaling: Rescaling = PLAIN


class Normalized(NamedTuple):
    """W / sigma, the u, v and sigma that it took, and whether the live ones are written already."""

    weight_sn: Tensor
    u: Tensor
    v: Tensor
    sigma: Tensor
    is_written: bool = False

    @property
    def state(self) -> State:
        return State(self.u, self.v, self.sigma.detach())


class GradientCall(NamedTuple):
    """The gradient of W / sigma, laid out as the dense weight is, and what it was computed with."""

    grad: Tensor
    weight: Tensor
    view: MatrixView
    u: Tensor
    v: Tensor
    sigma: Tensor
    rescaling: Rescaling = PLAIN


class Gradients(NamedTuple):
    """Those of a weight and of its learned scale, shape (1,), if it has one."""

    weight: Tensor
    scale: Tensor | None = None
