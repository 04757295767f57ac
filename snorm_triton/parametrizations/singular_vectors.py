"""The first singular vectors of a weight: drawn, warmed up, and brought in line with it."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import spectral_normalize, state_dtype
from ..ops.calls import State
from ..ops.dispatch import is_sharded
from ..torch_internals import functorch
from . import learned_scale
from .vector_buffers import VectorBuffers

WARM_UP_ITERATIONS = 15


class SingularVectors(VectorBuffers):
    """u, v and sigma of a weight, found by power iteration."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw u and v anew, in place; the next access iterates on them as registration does.

        Under torch's name for it. One that leaves the meta device is reset without being asked.
        """
        for name in self._vectors():
            vector = getattr(self, name)
            wide = torch.empty_like(vector, dtype=state_dtype(vector)).normal_(0, 1)
            vector.copy_(self._unit(wide))
        learned_scale.reset(self)
        self._forget_sigma()
        self.replaced()
        self._mark_drawn(self._vectors())

    @torch.no_grad()
    def refresh(self, weight: Tensor, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        """Iterate for ``weight`` as it is now, from u and v as they are, which may be averages.

        Drawn anew where they are too short or too long for that, or not finite.
        """
        if weight.ndim > 1 and not self._is_usable():
            self.reset_parameters()
        self._warm_up(weight, n_power_iterations)

    @torch.no_grad()
    def _warm_up(self, weight: Tensor, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        if weight.is_meta:
            return
        self.prepared = None
        if weight.ndim == 1:
            self._sigma.copy_(torch.linalg.vector_norm(weight, dtype=state_dtype(weight)))
        else:
            dtype = state_dtype(weight)
            if is_sharded(weight):
                from ..ops.modes.shards import broadcast

                broadcast(cast(Any, weight).device_mesh, self._u, self._v)
            u, v = (self._unit(vector.to(dtype)) for vector in (self._u, self._v))
            u, v, sigma = self._iterated(weight, u, v, n_power_iterations)
            self._u.copy_(u)
            self._v.copy_(v)
            self._sigma.copy_(sigma.abs())
        learned_scale.start(self, self._sigma)
        self._drawn = self._evaluated = None
        self.is_sigma_known = True

    def _iterated(self, weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int) -> State:
        """u, v and sigma after that many iterations from unit vectors."""
        _, *state = spectral_normalize(
            weight,
            u,
            v,
            dim=self.dim,
            n_power_iterations=n_power_iterations,
            backend=self.options.backend,
        )
        return State(*state)

    def _unit(self, vector: Tensor) -> Tensor:
        return F.normalize(vector.flatten(), dim=0, eps=self.eps).view_as(vector)

    def _wake(self, weight: Tensor) -> None:
        """Before the first access since u and v were drawn: warm them up, if they are so still."""
        self._follow_device()
        if not self._still_drawn():  # but loaded, be it one by one
            self._drawn = None
            return
        if torch.compiler.is_compiling() or functorch.active():
            raise RuntimeError(
                "u and v are as they were drawn, and compiled or transformed code cannot warm "
                "them up: call snorm_triton.refresh_spectral_norm(model) before"
            )
        self._warm_up(weight)

    def _is_usable(self) -> bool:
        """Whether u and v have the lengths of unit vectors, or of averages of such; reads them."""
        lengths = (torch.linalg.vector_norm(x.to(state_dtype(x))) for x in (self._u, self._v))
        return all(0.01 < length.abs() < 1.01 for length in lengths)
