"""The backend in Triton, as :class:`snorm_triton.ops.backend.Backend` says."""

from .rescale import rescale as rescale
from .together import normalize as normalize
from .together_backward import rescale_backward as rescale_backward
