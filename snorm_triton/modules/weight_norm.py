"""The life cycle of one weight norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from ..ops.dispatch import select
from ..parametrizations.base import Parametrization
from ..parametrizations.checks import check_dim
from ..parametrizations.options import WeightNormOptions
from ..parametrizations.weight_norm import WeightNormParametrization
from .access import originals_of
from .refusals import check_unsharded
from .wrapper import Wrapper


class WeightNormWrapper(Wrapper):
    """One parameter of one module and its weight normalization.

    Args:
        module: the module that holds the parameter.
        name: the parameter's attribute name.
        init_on_first_forward: for a lazy module, register when its parameters materialize, before
            its first forward is computed.
        options: those of :func:`snorm_triton.weight_norm`.

    Raises:
        ValueError, IndexError, TypeError: as :func:`snorm_triton.weight_norm`; nothing is changed
            then.
    """

    kind: ClassVar[type[Parametrization]] = WeightNormParametrization
    constraint = "weight norm"
    function = "weight_norm"
    options_type = WeightNormOptions
    options: WeightNormOptions

    @property
    def original(self) -> Tensor:
        """v, or the parameter where there is no weight norm on it."""
        if self.parametrizations:
            return originals_of(self._list())["original1"]
        return super().original

    def check_original(self, tensor: Tensor) -> None:
        if is_parametrized(self.module, self.name):
            others = ", ".join(type(each).__name__ for each in self._list())
            raise ValueError(
                f"{self._where()} has a parametrization already ({others}): a weight norm must be "
                "the first"
            )
        if self.options.dim not in (None, -1):
            check_dim(self.options.dim, tensor.shape)
        check_unsharded(self.module, tensor, self._where())
        select(tensor, self.options.backend)

    def parametrization_of(
        self, weight: Tensor, autocast_output: bool
    ) -> WeightNormParametrization:
        options = replace(self.options, autocast_output=autocast_output)
        return WeightNormParametrization(weight, options)

    @staticmethod
    def saved_weight(state_dict: Mapping[str, Any], prefix: str, name: str) -> Any:
        v = state_dict.get(f"{prefix}parametrizations.{name}.original1")
        if v is None and f"{prefix}{name}_g" in state_dict:
            v = state_dict.get(f"{prefix}{name}_v")
        return v

    def check_attached(self) -> None:
        super().check_attached()
        if self.parametrizations and len(self._list()) > 1:
            raise ValueError(
                f"{self._where()} has another parametrization on its weight norm: take that off "
                "before"
            )
