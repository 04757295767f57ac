"""The backend in Triton, as :class:`snorm_triton.ops.backend.Backend` says."""

from .gradient import rescale_backward
from .normalize import normalize
from .rounds import rounds
from .row_rounds import row_rounds
from .together import normalize as normalize_together
from .together_backward import rescale_backward as rescale_backward_together
from .weight_norm import scale_rows, scale_rows_backward
from .weight_norm_together import scale_rows as scale_rows_together
from .weight_norm_together import scale_rows_backward as scale_rows_backward_together

__all__ = [
    "normalize",
    "normalize_together",
    "rescale_backward",
    "rescale_backward_together",
    "rounds",
    "row_rounds",
    "scale_rows",
    "scale_rows_backward",
    "scale_rows_backward_together",
    "scale_rows_together",
]
