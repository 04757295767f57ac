"""Spectral normalization for PyTorch as one fused step, in Triton on GPUs and torch elsewhere."""

from typing import TYPE_CHECKING, Any

from . import functional
from .api.orthogonal import apply_orthogonal, orthogonal, remove_orthogonal
from .api.spectral_norm import refresh_spectral_norm, remove_spectral_norm, spectral_norm
from .api.spectral_penalty import spectral_penalty
from .api.weight_norm import apply_weight_norm, remove_weight_norm, weight_norm
from .api.whole_models import apply_spectral_norm
from .checkpoints.state_dicts import convert_state_dict
from .models import (
    SNDCGANDiscriminator,
    SNDCGANGenerator,
    SNResNetDiscriminator,
    SNResNetGenerator,
)
from .modules.conversion import convert_spectral_norm
from .modules.folding import fold
from .modules.spectral_norm import SpectralNormWrapper
from .modules.torch_patch import patch_torch
from .modules.weight_norm_conversion import convert_weight_norm
from .ops.recomputation import checkpoint_contexts
from .parametrizations.orthogonal import OrthogonalParametrization
from .parametrizations.spectral_norm import SpectralNormParametrization
from .parametrizations.weight_norm import WeightNormParametrization
from .reports import backend_report, log_sigmas, sigmas
from .selection import left_out

if TYPE_CHECKING:
    from . import lipschitz

__version__ = "0.2.0"

__all__ = [
    "OrthogonalParametrization",
    "SNDCGANDiscriminator",
    "SNDCGANGenerator",
    "SNResNetDiscriminator",
    "SNResNetGenerator",
    "SpectralNormParametrization",
    "SpectralNormWrapper",
    "WeightNormParametrization",
    "__version__",
    "apply_orthogonal",
    "apply_spectral_norm",
    "apply_weight_norm",
    "backend_report",
    "checkpoint_contexts",
    "convert_spectral_norm",
    "convert_state_dict",
    "convert_weight_norm",
    "fold",
    "functional",
    "left_out",
    "lipschitz",
    "log_sigmas",
    "orthogonal",
    "patch_torch",
    "refresh_spectral_norm",
    "remove_orthogonal",
    "remove_spectral_norm",
    "remove_weight_norm",
    "sigmas",
    "spectral_norm",
    "spectral_penalty",
    "weight_norm",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # At its first use: most programs have none.
    if name == "lipschitz":
        from importlib import import_module

        return import_module(".lipschitz", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
