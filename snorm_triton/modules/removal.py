"""All parametrizations taken off a parameter."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    remove_parametrizations,
)

from ..parametrizations.base import Parametrization, evaluating
from .access import originals_of
from .copying import make_copyable
from .lazy import waiting
from .loading import forget_checkpoints


def take_off(module: nn.Module, name: str, leave_parametrized: bool = True) -> None:
    """Take all parametrizations off a parameter, without iterating."""
    all_lists: Any = module.parametrizations
    parametrizations: ParametrizationList = all_lists[name]
    originals = list(originals_of(parametrizations).values())
    for each in parametrizations:  # what lies in one piece with others is computed anew
        if isinstance(each, Parametrization):
            each.prepared = None
    with evaluating(), no_autocast(originals[0]), torch.inference_mode(False):
        remove_parametrizations(module, name, leave_parametrized)
    if len(originals) > 1 and isinstance(originals[0], nn.Parameter):
        # torch leaves a buffer where no gradient is taken.
        weight: Any = module._parameters.pop(name, None)
        weight = module._buffers.pop(name, weight)
        requires_grad = any(each.requires_grad for each in originals)
        module.register_parameter(name, nn.Parameter(weight.detach(), requires_grad))
    if is_parametrized(module):
        make_copyable(module)
    if not waiting(module):
        forget_checkpoints(module)


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """torch's checks take a weight in autocast's dtype for a mistake."""
    kind = tensor.device.type
    has_autocast = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if has_autocast else nullcontext()
