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
    """A power iteration in eager mode, with gradients, of a weight whose kind alone counts."""

    def __init__(self, parametrization: Any, access: Access, iterate: eager.Iteration) -> None:
        self._kind = _kind_of(access.weight)
        self._device_type = access.weight.device.type
        self._u, self._v, self._sigma = (
            parametrization._buffers[n] for n in ("_u", "_v", "_sigma")
        )
        self._options = parametrization.options
        self.iterate = iterate

    def holds(self, weight: Tensor, known: dict[str, Any]) -> bool:
        """Whether an access to ``weight`` here and now is the same, by what its module is."""
        buffers = known["_buffers"]
        return (
            not is_tracing()  # it would record what is asked of the weight
            and buffers["_u"] is self._u
            and buffers["_v"] is self._v
            and buffers["_sigma"] is self._sigma
            and known["training"]
            and known["options"] is self._options
            and known.get("prepared") is None
            and _kind_of(weight) == self._kind
            and _is_usual(self._device_type)
        )


def standing_access(parametrization: Any, access: Access) -> StandingAccess | None:
    """What makes this access of eager mode again; None where it must be looked at each time."""
    weight, u, v, *_ = access
    buffers, options = parametrization._buffers, parametrization.options
    stands = (
        weight.numel() > 0
        and not weight.is_complex()
        and buffers["_u"] is u
        and buffers["_v"] is v
        and not (u.requires_grad or options.autocast_output or parametrization._parameters)
        and options.power_iter == "access"
        and has_autocast(weight.device.type)
        and _is_usual(weight.device.type)
    )
    iterate = eager.iteration(access) if stands else None
    return None if iterate is None else StandingAccess(parametrization, access, iterate)


def _is_usual(device_type: str) -> bool:
    return torch.is_grad_enabled() and is_plain() and not torch.is_autocast_enabled(device_type)


def _kind_of(weight: Tensor) -> tuple[object, ...]:
    return type(weight), weight.shape, weight.stride(), weight.dtype, weight.device
