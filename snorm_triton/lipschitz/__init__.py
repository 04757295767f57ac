"""Norms of convolutions as the maps they are, and Lipschitz bounds of models made of them.

The reshaped matrix, which spectral normalization divides by, is not that map: docs/lipschitz.md.
"""

from .bound import conv_norm_bound
from .containers import Concatenation, Residual
from .model import model_bound
from .norm import conv_norm

__all__ = ["Concatenation", "Residual", "conv_norm", "conv_norm_bound", "model_bound"]


def __dir__() -> list[str]:
    return __all__
