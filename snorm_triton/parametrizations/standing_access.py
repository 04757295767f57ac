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

    Neither the weight nor u, v and sigma are kept, or need be the same objects.
    """

    def __init__(self, parametrization: Any, access: Access, iterate: eager.Iteration) -> None:
        weight = access.weight
        self._dtype = access.u.dtype
        self._options = parametrization.options
        self._device_type = weight.device.type
        self._kind = _kind_of(weight)
        self._iterate = iterate

    def __call__(self, weight: Tensor, known: dict[str, Any]) -> Tensor | None:
        """W / sigma of ``weight`` by the parametrization with these attributes.

        None where the access is another one, and nothing is done.
        """
        buffers, dtype = known["_buffers"], self._dtype
        u, v, sigma = buffers["_u"], buffers["_v"], buffers["_sigma"]
        if not (
            not is_tracing()  # it would record what is asked of the weight
            and u.dtype is dtype
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
        ):
            return None
        return self._iterate(weight, u, v, sigma)


def standing_access(parametrization: Any, access: Access) -> StandingAccess | None:
    """What makes this access of eager mode again; None where it must be looked at each time.

    Not for a subclass, which may decide otherwise at each.
    """
    weight = access.weight
    may_stand = (
        parametrization.options.power_iter == "access"
        and torch.is_grad_enabled()
        and access.dtype is weight.dtype  # not autocast's
        and not parametrization._parameters
        and parametrization._buffers["_v"].dtype is access.v.dtype  # not converted, nor is u
        and weight.numel() > 0
        and not weight.is_complex()
        and has_autocast(weight.device.type)
    )
    iterate = eager.iteration(access) if may_stand else None
    return None if iterate is None else StandingAccess(parametrization, access, iterate)


def _kind_of(weight: Tensor) -> tuple[object, ...]:
    return type(weight), weight.shape, weight.stride(), weight.dtype, weight.device
