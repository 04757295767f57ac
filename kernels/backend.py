"""The backend in Triton, as :class:`snorm_triton.ops.backend.Backend` says."""

from .gradient import rescale_backward
from .normalize import normalize
from .rescale import rescale
from .together import normalize as normalize_together
from .together_backward import rescale_backward as rescale_backward_together

__all__ = [
    "normalize",
    "normalize_together",
    "rescale",
    "rescale_backward",
    "rescale_backward_together",
]
