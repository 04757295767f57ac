"""Norms of convolutions as the maps they are.

The reshaped matrix, which spectral normalization divides by, is not that map: docs/lipschitz.md.
"""

from .bound import conv_norm_bound
from .norm import conv_norm

__all__ = ["conv_norm", "conv_norm_bound"]
