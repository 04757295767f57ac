"""Every spectral norm of a model baked in, whoever made it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import remove_spectral_norm as remove_hook
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from ..parametrizations.spectral_norm import SpectralNormParametrization
from ..torch_internals.parametrize import LegacySpectralNorm, TorchSpectralNorm
from .lazy import waiting
from .whole_model import detach
from .wrapper import SpectralNormWrapper


def fold(model: nn.Module) -> list[str]:
    """Bake the normalized weights of a model in, as evaluation has them, for serving and export.

    Ours and both of torch's: :func:`torch.nn.utils.spectral_norm` and
    :func:`torch.nn.utils.parametrizations.spectral_norm`. Nothing iterates.

    Args:
        model: any module; itself a candidate.

    Returns:
        The qualified names of the parameters that are plain ones now; an empty list where there
        were none.

    Raises:
        ValueError: a parameter has another parametrization too, which would be lost, or waits for
            its lazy module. Nothing is changed then.

    Example:
        >>> model = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(2, 3)), nn.ReLU())
        >>> fold(model)
        ['0.weight']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = [
        (f"{path}.{name}" if path else name, module, name, is_hook)
        for path, module in list(model.named_modules())
        for name, is_hook in _normalized(module)
    ]
    for where, module, name, is_hook in found:
        _check(where, module, name, is_hook)
    for _, module, name, is_hook in found:
        if is_hook:
            remove_hook(module, name)
        elif SpectralNormWrapper(module, name).parametrizations:
            SpectralNormWrapper(module, name).remove()
        else:
            parametrizations: Any = module.parametrizations
            parametrizations[name].eval()  # an access in training iterates
            remove_parametrizations(module, name)
    detach(model)
    return [where for where, *_ in found]


def _normalized(module: nn.Module) -> list[tuple[str, bool]]:
    """The names of a module's normalized parameters, and whether torch's hook computes them."""
    hooks = module._forward_pre_hooks.values()
    found = [(hook.name, True) for hook in hooks if isinstance(hook, LegacySpectralNorm)]
    found += [(each.name, False) for each in waiting(module)]
    if is_parametrized(module):
        all_lists: Any = module.parametrizations
        for name, each in all_lists.items():
            if any(isinstance(p, SpectralNormParametrization | TorchSpectralNorm) for p in each):
                found.append((name, False))
    return found


def _check(where: str, module: nn.Module, name: str, is_hook: bool) -> None:
    if is_hook:
        return
    if waiting(module, name):
        raise ValueError(f"{where} waits for its lazy module: run a forward first")
    parametrizations: Any = module.parametrizations
    kinds = {isinstance(p, SpectralNormParametrization) for p in parametrizations[name]}
    others = [
        type(p).__name__
        for p in parametrizations[name]
        if not isinstance(p, SpectralNormParametrization | TorchSpectralNorm)
    ]
    if others or len(kinds) > 1:
        raise ValueError(
            f"{where} has {', '.join(others) or 'spectral norms of two kinds'} on it too: take all "
            "off with torch.nn.utils.parametrize.remove_parametrizations, or convert it"
        )
