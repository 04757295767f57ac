"""An access in training to one weight, made again as it was for as long as nothing is otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.calls import Access
from ..ops.modes import eager
from ..ops.modes.composite import has_autocast
from ..torch_internals.tracing import is_tracing
from .circumstances import is_plain


class StandingAccess:
    """A power iteration in eager mode, with gradients, and all that it depends on but for values.

    The weight is not kept, and need not be the same object; u, v and sigma must be.
    """

    def __init__(self, parametrization: Any, weight: Tensor, iterate: eager.Iteration) -> None:
        buffers = parametrization.__dict__["_buffers"]
        self._u, self._v, self._sigma = buffers["_u"], buffers["_v"], buffers["_sigma"]
        self._dtype = self._u.dtype
        self._options = parametrization.options
        self._device_type = weight.device.type
        self._kind = _kind_of(weight)
        self.iterate = iterate

    def holds(self, weight: Tensor, known: dict[str, Any]) -> bool:
        """Whether an access to ``weight`` by the parametrization with these attributes is it."""
        buffers, dtype = known["_buffers"], self._dtype
        u, v, sigma = self._u, self._v, self._sigma
        return (
            not is_tracing()  # it would record what is asked of the weight
            and buffers["_u"] is u
            and buffers["_v"] is v
            and buffers["_sigma"] is sigma
            and u.dtype is dtype  # which `.data` may change
            and v.dtype is dtype
            and not (u.requires_grad or v.requires_grad or sigma.requires_grad)
            and known["training"]
            and known["options"] is self._options
            and known.get("prepared") is None
            and not known["_parameters"]  # such as a learned scale
            and _kind_of(weight) == self._kind
            and not weight.is_neg()
            and torch.is_grad_enabled()
            and is_plain()
            and not torch.is_autocast_enabled(self._device_type)
        )


def standing_access(parametrization: Any, access: Access) -> StandingAccess | None:
    """What makes this access of eager mode again; None where it must be looked at each time.

    Not for a subclass, which may decide otherwise at each.
    """
    weight = access.weight
    may_stand = (
        parametrization.options.power_iter == "access"
        and parametrization._buffers["_v"] is access.v  # not converted, as u is not
        and weight.numel() > 0
        and not weight.is_complex()
        and has_autocast(weight.device.type)
    )
    iterate = eager.iteration(access) if may_stand else None
    if iterate is None:
        return None
    standing = StandingAccess(parametrization, weight, iterate)
    return standing if standing.holds(weight, parametrization.__dict__) else None


def _kind_of(weight: Tensor) -> tuple[object, ...]:
    return type(weight), weight.shape, weight.stride(), weight.dtype, weight.device
