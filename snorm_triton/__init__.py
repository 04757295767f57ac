"""Spectral normalization for PyTorch as one fused step, in Triton on GPUs and torch elsewhere."""

from . import functional
from .api import refresh_spectral_norm, remove_spectral_norm, spectral_norm
from .apply import apply_spectral_norm
from .checkpoints.state_dicts import convert_state_dict
from .models import (
    SNDCGANDiscriminator,
    SNDCGANGenerator,
    SNResNetDiscriminator,
    SNResNetGenerator,
)
from .modules.conversion import convert_spectral_norm
from .modules.folding import fold
from .modules.torch_patch import patch_torch
from .modules.wrapper import SpectralNormWrapper
from .ops.recomputation import checkpoint_contexts
from .parametrizations.spectral_norm import SpectralNormParametrization
from .reports import backend_report, log_sigmas, sigmas
from .selection import left_out

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
    "checkpoint_contexts",
    "convert_spectral_norm",
    "convert_state_dict",
    "fold",
    "functional",
    "left_out",
    "log_sigmas",
    "patch_torch",
    "refresh_spectral_norm",
    "remove_spectral_norm",
    "sigmas",
    "spectral_norm",
]
