"""What becomes of a weight once its sigma is known: W / sigma, within a bound, times a scale."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rescaling(NamedTuple):
    """``scale W / sigma``, or where there is a bound ``scale W / max(1, |sigma| / bound)``."""

    bound: float = 0.0  # none
    scale: float = 1.0
    learned: Tensor | None = None  # a scale of shape (1,), which multiplies it too

    def detached(self) -> Rescaling:
        """The same without a graph."""
        return self if self.learned is None else self._replace(learned=self.learned.detach())

    @property
    def version(self) -> int:
        """That of the learned scale."""
        return 0 if self.learned is None else self.learned._version

    @property
    def requires_grad(self) -> bool:
        """Whether the learned scale does."""
        return self.learned is not None and self.learned.requires_grad

    def multiplier(self, like: Tensor) -> float | Tensor:
        """The scale, as a number or of shape () and the dtype of ``like``."""
        if self.learned is None:
            return self.scale
        return self.scale * self.learned.to(like.dtype).reshape(())


PLAIN = Rescaling()


def nonzero(sigma: Tensor) -> Tensor:
    """``sigma``, and 1 where it is zero (below the smallest normal number), so that 0 / 0 is 0."""
    return torch.where(sigma.abs() < torch.finfo(sigma.dtype).tiny, 1, sigma)


def divides(sigma: Tensor, bound: float) -> Tensor:
    """Whether a weight is divided by its sigma: not if it is zero, nor if it is within a bound.

    One that is not a number divides, and so is seen.
    """
    if bound:
        return torch.logical_not(sigma.abs() <= bound)
    return torch.logical_not(sigma.abs() < torch.finfo(sigma.dtype).tiny)


def divisor(sigma: Tensor, bound: float) -> Tensor:
    """What a weight is divided by, shape (): differentiable in ``sigma``."""
    if bound:
        return torch.where(divides(sigma, bound), sigma.abs() / bound, 1)
    return nonzero(sigma)


def rescaled(weight: Tensor, sigma: Tensor, rescaling: Rescaling) -> Tensor:
    """``weight`` over ``sigma``, both of one dtype, in the weight's layout; differentiable."""
    by = divisor(sigma, rescaling.bound)
    if rescaling.learned is None and rescaling.scale == 1:
        return weight / by
    return weight * (rescaling.multiplier(by) / by)
