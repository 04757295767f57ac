"""The backend in Triton, as :class:`snorm_triton.ops.backend.Backend` says."""

from collections.abc import Sequence

from torch import Tensor

from ..ops.row_scaling import RowScaled, RowScaling, RowScalingGradient
from .gradient import rescale_backward
from .normalize import normalize
from .together import normalize as normalize_together
from .together_backward import rescale_backward as rescale_backward_together
from .weight_norm import scale_rows, scale_rows_backward

__all__ = [
    "normalize",
    "normalize_together",
    "rescale_backward",
    "rescale_backward_together",
    "scale_rows",
    "scale_rows_backward",
    "scale_rows_backward_together",
    "scale_rows_together",
]


def scale_rows_together(calls: Sequence[RowScaling]) -> list[RowScaled]:
    return [scale_rows(*call) for call in calls]


def scale_rows_backward_together(
    calls: Sequence[RowScalingGradient],
) -> list[tuple[Tensor, Tensor]]:
    return [scale_rows_backward(*call) for call in calls]
