"""An access in training to one weight, made again as it was for as long as nothing is otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.calls import Access
from ..ops.modes import eager
from ..ops.modes.composite import has_autocast
from ..torch_internals.tracing import is_tracing
from . import updates
from .circumstances import is_plain


class StandingAccess:
    """An access in eager mode, with gradients, and all that it depends on but for values.

    It iterates, or replays where policy "update" has nothing to iterate for.

    Neither the weight nor u, v and sigma are kept, or need be the same objects.
    """

    def __init__(self, parametrization: Any, access: Access, make: eager.MakeAgain) -> None:
        weight = access.weight
        self._dtype = access.u.dtype
        self._options = parametrization.options
        self._updates = self._options.power_iter == "update"
        self._device_type = weight.device.type
        self._kind = _kind_of(weight)
        self._make = make

    def __call__(self, weight: Tensor, parametrization: Any) -> Tensor | None:
        """W / sigma of ``weight`` by this parametrization.

        None where the access is another one, and nothing is done.
        """
        known = parametrization.__dict__  # past Module's attribute lookup
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
        replays = self._updates and not updates.is_due(parametrization, weight)
        if replays and (sigma.dtype is not dtype or not updates.notices_all(parametrization)):
            return None
        made = self._make(weight, u, v, sigma, replays)
        known["is_sigma_known"] = True
        if not replays:
            known["_evaluated"] = None
            if self._updates:
                updates.has_iterated(parametrization, weight, made.u)
        return made.weight_sn


def standing_access(parametrization: Any, access: Access) -> StandingAccess | None:
    """What makes this access of eager mode again; None where it must be looked at each time.

    Not for a subclass, which may decide otherwise at each.
    """
    weight = access.weight
    may_stand = (
        torch.is_grad_enabled()
        and access.dtype is weight.dtype  # not autocast's
        and not parametrization._parameters
        and parametrization._buffers["_v"].dtype is access.v.dtype  # not converted, nor is u
        and weight.numel() > 0
        and not weight.is_complex()
        and has_autocast(weight.device.type)
    )
    n = parametrization.options.n_power_iterations
    make = eager.repeated(access, n) if may_stand else None
    return None if make is None else StandingAccess(parametrization, access, make)


def _kind_of(weight: Tensor) -> tuple[object, ...]:
    return type(weight), weight.shape, weight.stride(), weight.dtype, weight.device
