"""torch's own spectral norms, and the cache of ``parametrize.cached()``."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrizations, parametrize

from .door import private

TorchSpectralNorm: Any = private("torch.nn.utils.parametrizations", "_SpectralNorm")
"""The parametrization of :func:`torch.nn.utils.parametrizations.spectral_norm`."""
if TorchSpectralNorm is None:
    _layer: Any = parametrizations.spectral_norm(nn.Linear(1, 1, device="meta"))
    TorchSpectralNorm = type(_layer.parametrizations.weight[0])


class _NoHook:
    name = ""


LegacySpectralNorm: Any = private("torch.nn.utils.spectral_norm", "SpectralNorm", _NoHook)
"""The forward pre-hook of :func:`torch.nn.utils.spectral_norm`."""
_has_cache = (
    private("torch.nn.utils.parametrize", "_cache_enabled") is not None
    and private("torch.nn.utils.parametrize", "_cache") is not None
)


def is_caching() -> bool:
    """Whether this is inside of ``parametrize.cached()``."""
    return not _has_cache or bool(parametrize._cache_enabled)


def is_cached(module: nn.Module, name: str) -> bool:
    """Whether ``parametrize.cached()`` holds the tensor, and no access will compute it."""
    if not _has_cache or not parametrize._cache_enabled:
        return False
    return (id(module), name) in parametrize._cache
