"""Every constraint of a model baked in, whoever made it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized

from ..parametrizations.orthogonal import OrthogonalParametrization
from ..parametrizations.spectral_norm import SpectralNormParametrization
from ..parametrizations.weight_norm import WeightNormParametrization
from ..torch_internals.parametrize import (
    LegacySpectralNorm,
    LegacyWeightNorm,
    TorchOrthogonal,
    TorchSpectralNorm,
    TorchWeightNorm,
)
from .lazy import waiting
from .removal import take_off
from .whole_model import detach

_OURS = (SpectralNormParametrization, WeightNormParametrization, OrthogonalParametrization)
_TORCHS = (TorchSpectralNorm, TorchWeightNorm, TorchOrthogonal)
_HOOKS = (LegacySpectralNorm, LegacyWeightNorm)


def fold(model: nn.Module) -> list[str]:
    """Bake the constrained weights of a model in, as evaluation has them, for serving and export.

    Spectral and weight norms and orthogonal weights, ours and torch's: the hooks of
    :mod:`torch.nn.utils` and the parametrizations of :mod:`torch.nn.utils.parametrizations`. No
    power iteration is done.

    Args:
        model: any module; itself a candidate.

    Returns:
        The qualified names of the parameters that are plain ones now; an empty list where there
        were none.

    Raises:
        ValueError: a parameter has another parametrization too, which would be lost, or waits for
            its lazy module. Nothing is changed then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import fold
        >>> model = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(2, 3)), nn.ReLU())
        >>> fold(model)
        ['0.weight']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = [
        (f"{path}.{name}" if path else name, module, name, hook)
        for path, module in list(model.named_modules())
        for name, hook in _normalized(module)
    ]
    for where, module, name, hook in found:
        _check(where, module, name, hook)
    for _, module, name, hook in found:
        if isinstance(hook, LegacySpectralNorm):
            remove_spectral_norm(module, name)
        elif hook is not None:
            remove_weight_norm(module, name)
        else:
            all_lists: Any = module.parametrizations
            all_lists[name].eval()  # an access in training iterates
            take_off(module, name)
    detach(model)
    return [where for where, *_ in found]


def _normalized(module: nn.Module) -> list[tuple[str, Any]]:
    """The names of a module's normalized parameters, each with torch's hook or None."""
    hooks = module._forward_pre_hooks.values()
    found = [(hook.name, hook) for hook in hooks if isinstance(hook, _HOOKS)]
    found += [(each.name, None) for each in waiting(module)]
    if is_parametrized(module):
        all_lists: Any = module.parametrizations
        for name, each in all_lists.items():
            if any(isinstance(p, (*_OURS, *_TORCHS)) for p in each):
                found.append((name, None))
    return found


def _check(where: str, module: nn.Module, name: str, hook: Any) -> None:
    if hook is not None:
        return
    if waiting(module, name):
        raise ValueError(f"{where} waits for its lazy module: run a forward first")
    all_lists: Any = module.parametrizations
    kinds = {isinstance(p, _OURS) for p in all_lists[name]}
    others = [type(p).__name__ for p in all_lists[name] if not isinstance(p, (*_OURS, *_TORCHS))]
    if others or len(kinds) > 1:
        raise ValueError(
            f"{where} has {', '.join(others) or 'ours and those of torch'} on it too: take all off "
            "with torch.nn.utils.parametrize.remove_parametrizations, or convert it"
        )
