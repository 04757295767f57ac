"""Spectral normalization for PyTorch as one fused step, in Triton on GPUs and torch elsewhere."""

from . import functional
from .api import (
    apply_spectral_norm,
    backend_report,
    refresh_spectral_norm,
    remove_spectral_norm,
    sigmas,
    spectral_norm,
)
from .checkpoint import convert_state_dict
from .conversion import convert_spectral_norm
from .models import (
    SNDCGANDiscriminator,
    SNDCGANGenerator,
    SNResNetDiscriminator,
    SNResNetGenerator,
)
from .monitor import log_sigmas
from .parametrization import SpectralNormParametrization
from .wrapper import SpectralNormWrapper

__version__ = "0.1.0"

__all__ = [
    "SNDCGANDiscriminator",
    "SNDCGANGenerator",
    "SNResNetDiscriminator",
    "SNResNetGenerator",
    "SpectralNormParametrization",
    "SpectralNormWrapper",
    "__version__",
    "apply_spectral_norm",
    "backend_report",
    "convert_spectral_norm",
    "convert_state_dict",
    "functional",
    "log_sigmas",
    "refresh_spectral_norm",
    "remove_spectral_norm",
    "sigmas",
    "spectral_norm",
]
