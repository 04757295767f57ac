"""Power iteration on a convolution, whose singular vectors are images."""

from __future__ import annotations

import torch
from torch import Tensor

from .calls import State, Step
from .convolution import Convolution
from .convolution_geometry import Geometry
from .power_iteration import estimate


@torch.no_grad()
def estimate_of_convolution(
    geometry: Geometry, weight: Tensor, u: Tensor, v: Tensor, step: Step
) -> State:
    """u, v and sigma, all of them fresh."""
    taken = estimate(_Flat(weight, geometry), u.flatten(), v.flatten(), step)
    return State(taken.u.view_as(u), taken.v.view_as(v), taken.sigma)


class _Flat:
    """The convolution as a map from vectors to vectors."""

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self.convolution = Convolution(weight, geometry)

    def matvec(self, v: Tensor) -> Tensor:
        return self.convolution.forward(v.view(self.convolution.input_shape)).flatten()

    def adjoint(self, u: Tensor) -> Tensor:
        return self.convolution.adjoint(u.view(self.convolution.output_shape)).flatten()

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.vdot(u, self.matvec(v))
