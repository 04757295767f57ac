"""The parametrization that separates the lengths of a weight's rows from their directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from torch import Tensor

from ..ops import weight_norm
from ..ops.dispatch import select
from ..ops.recomputation import Checkpoints
from ..ops.torch_row_scaling import norm_except, wide
from ..ops.weight_norm import WeightNormAccess
from .base import Originals
from .checks import check_dim
from .determined import Determined
from .options import WeightNormKeywords, WeightNormOptions
from .weight_norm_rounds import weight_norm_rounds


class WeightNormParametrization(Determined):
    r"""``forward(g, v) = g v / |v|``, for ``torch.nn.utils.parametrize.register_parametrization``.

    g has the shape of the weight with every size but that of ``dim`` at 1, or () where one norm is
    of all. torch registers g and v as ``original0`` and ``original1``; no other state is kept.
    Norms are float32 at least. A row of zeros stays one, and its gradient is that of a division
    by 1.

    Args:
        weight: the weight as it is now, at least 1-D, floating or complex.
        options: those of :func:`snorm_triton.weight_norm`.
        more: the options as keywords, in place of ``options``.

    Raises:
        ValueError, IndexError: an option is not what it may be for this weight.
    """

    options: WeightNormOptions

    def __init__(
        self,
        weight: Tensor,
        options: WeightNormOptions | None = None,
        **more: Unpack[WeightNormKeywords],
    ) -> None:
        super().__init__()
        self.options = WeightNormOptions.of(more) if options is None else options
        if self.dim is not None:
            check_dim(self.dim, weight.shape)
        select(weight, self.options.backend)
        self._rows = None if self.dim is None else self.dim % weight.ndim

    @property
    def dim(self) -> int | None:
        """The dimension that keeps its norms; None where one norm is of all. torch says -1 too."""
        dim: int | None = self.options.dim
        return None if dim == -1 else dim

    def computed(self, *originals: Tensor) -> Tensor:
        """``g v / |v|``, of the shape and memory layout of ``v``."""
        g, v = originals
        options = self.options
        dtype = self.output_dtype(v) if options.autocast_output else v.dtype
        return weight_norm.normalized(v, g, self._rows, dtype, options.backend)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The g and v of a weight."""
        self.prepared = None
        return norm_except(wide(value), self._rows).to(value.dtype.to_real()), value

    def joins(self, originals: Originals) -> bool:
        """Whether the weight is a real matrix."""
        return originals[1].ndim > 1 and not originals[1].is_complex()

    def access(self, originals: Originals, checkpoints: Checkpoints | None) -> WeightNormAccess:
        """What an access computes here and now."""
        g, v = originals
        options = self.options
        dtype = self.output_dtype(v) if options.autocast_output else v.dtype
        return WeightNormAccess(v, g, self._rows, dtype, options.backend)

    @staticmethod
    def compute(accesses: Sequence[WeightNormAccess]) -> list[Any]:
        """g v / |v| of each."""
        return [(weight,) for weight in weight_norm.normalize_together(accesses)]

    rounds = staticmethod(weight_norm_rounds)

    def settle(
        self, access: WeightNormAccess, output: Any, checkpoints: Checkpoints | None
    ) -> None:
        """Keep the weight of an evaluation."""
        if not self.training:
            self.keep((access.g, access.weight), output[0])

    def alias(self, suffix: str, originals: Originals) -> Tensor | None:
        """g and v."""
        return dict(zip(("_g", "_v"), originals, strict=True)).get(suffix)

    def upgrade(
        self, state_dict: dict[str, Any], prefix: str, name: str, path: str
    ) -> dict[str, str]:
        """Rename the entries of torch's hook."""
        old = f"{prefix}{name}_g", f"{prefix}{name}_v"
        new = [f"{prefix}parametrizations.{name}.original{i}" for i in range(2)]
        if not set(old) <= state_dict.keys() or new[0] in state_dict:
            return {}
        for key, legacy in zip(new, old, strict=True):
            state_dict[key] = state_dict.pop(legacy)
        return dict(zip(new, old, strict=True))

    def extra_repr(self) -> str:
        shown = {"dim": self.dim, **self.options.differing()}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
