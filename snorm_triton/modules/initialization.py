"""``reset_parameters`` of a module with normalized parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..parametrizations.base import Parametrization
from .access import own_original


def reset_originals(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The module's own ``reset_parameters``, on its parameters as they are before normalization.

    It would initialize the normalized weights otherwise, which are temporaries. Their u and v are
    drawn anew after it.
    """
    parametrized = type(module)
    parametrizations: Any = getattr(module, "parametrizations", {})
    ours = {
        name: each
        for name, each in parametrizations.items()
        if all(isinstance(p, Parametrization) for p in each)
    }
    own = next(
        cls for cls in parametrized.__mro__ if vars(cls).get("reset_parameters") is reset_originals
    )
    plain: Any = own.__bases__[0]  # where no property stands before a parameter
    if not ours or len(ours) < len(parametrizations):  # others parametrize it too, or alone
        plain.reset_parameters(module, *args, **kwargs)
        return
    with torch.no_grad():
        originals = {name: own_original(each) for name, each in ours.items()}
        weights = {
            name: ours[name]() if original is None else original
            for name, original in originals.items()
        }
    module.__class__ = plain
    module.__dict__.update(weights)
    replaced: dict[str, Tensor | None] = {}
    try:
        module.reset_parameters(*args, **kwargs)  # type: ignore[operator]
    finally:
        for name in ours:
            module.__dict__.pop(name, None)
            replaced[name] = module._parameters.pop(name, None)
            if replaced[name] is None and originals[name] is None:
                replaced[name] = weights[name]
        module.__class__ = parametrized
    for name, each in ours.items():
        new = replaced[name]
        if new is not None:
            setattr(module, name, new.detach())
        for parametrization in each:
            parametrization.reset_parameters()
