"""The backend in Triton, as :class:`snorm_triton.ops.backend.Backend` says."""

from collections.abc import Sequence

from torch import Tensor

from ..ops.row_scaling import RowScaled, RowScaling, RowScalingGradient
from . import weight_norm
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
    "scale_rows",
    "scale_rows_backward",
]


def scale_rows(calls: Sequence[RowScaling]) -> list[RowScaled]:
    return [weight_norm.scale_rows(*call) for call in calls]


def scale_rows_backward(calls: Sequence[RowScalingGradient]) -> list[tuple[Tensor, Tensor]]:
    return [weight_norm.scale_rows_backward(*call) for call in calls]
