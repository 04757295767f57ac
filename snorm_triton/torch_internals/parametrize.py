"""torch's own parametrizations and norms, and the cache of ``parametrize.cached()``."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .door import private


class _Absent:
    """In place of a class that this torch does not have: nothing is an instance of it."""

    name = ""


TorchSpectralNorm: Any = private("torch.nn.utils.parametrizations", "_SpectralNorm", _Absent)
"""The parametrization of :func:`torch.nn.utils.parametrizations.spectral_norm`."""
LegacySpectralNorm: Any = private("torch.nn.utils.spectral_norm", "SpectralNorm", _Absent)
"""The forward pre-hook of :func:`torch.nn.utils.spectral_norm`."""
TorchWeightNorm: Any = private("torch.nn.utils.parametrizations", "_WeightNorm", _Absent)
"""The parametrization of :func:`torch.nn.utils.parametrizations.weight_norm`."""
LegacyWeightNorm: Any = private("torch.nn.utils.weight_norm", "WeightNorm", _Absent)
"""The forward pre-hook of :func:`torch.nn.utils.weight_norm`."""
TorchOrthogonal: Any = private("torch.nn.utils.parametrizations", "_Orthogonal", _Absent)
"""The parametrization of :func:`torch.nn.utils.parametrizations.orthogonal`."""
fused_weight_norm: Any = private("torch", "_weight_norm_interface")
"""What torch's computes with: the weight and the norms; None in a torch that has no such thing."""
fused_weight_norm_backward: Any = private(
    "torch", "ops.aten._weight_norm_interface_backward.default"
)
"""Its gradients of v and g; None likewise."""
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
