"""The life cycle of one orthogonal parametrization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from ..ops.dispatch import is_sharded
from ..ops.polar_factor import Polar, PolarAccess, well_conditioned
from ..parametrizations.base import Parametrization
from ..parametrizations.options import OrthogonalOptions
from ..parametrizations.orthogonal import OrthogonalParametrization, read_as_matrices
from .wrapper import Wrapper


class OrthogonalWrapper(Wrapper):
    """One parameter of one module and its orthogonal parametrization.

    Args:
        module: the module that holds the parameter.
        name: the parameter's attribute name.
        init_on_first_forward: for a lazy module, register when its parameters materialize, before
            its first forward is computed.
        options: those of :func:`snorm_triton.orthogonal`.

    Raises:
        ValueError, IndexError, TypeError: as :func:`snorm_triton.orthogonal`; nothing is changed
            then.
    """

    kind: ClassVar[type[Parametrization]] = OrthogonalParametrization
    constraint = "orthogonal parametrization"
    function = "orthogonal"
    options_type = OrthogonalOptions
    options: OrthogonalOptions

    def check_original(self, tensor: Tensor) -> None:
        if is_sharded(tensor):
            raise ValueError(
                f"{self._where()} is sharded: an orthogonal weight is computed of the whole "
                "parameter, so register it before sharding the model"
            )
        reading, kind = read_as_matrices(tensor, self.options)
        if is_parametrized(self.module, self.name):
            self._check_stacked(kind)
        elif kind == "newton_schulz":
            polar = Polar(reading, self.options.n_iterations, tensor.dtype)
            try:
                well_conditioned(PolarAccess(tensor, polar))
            except ValueError as error:
                raise ValueError(f"{self._where()}: {error}") from None

    def _check_stacked(self, kind: str) -> None:
        if self.options.use_trivialization and kind != "newton_schulz":
            others = ", ".join(type(each).__name__ for each in self._list())
            raise ValueError(
                f"{self._where()} has a parametrization already ({others}), of which a base would "
                "be taken: use use_trivialization=False, or register this one first"
            )

    def parametrization_of(
        self, weight: Tensor, autocast_output: bool
    ) -> OrthogonalParametrization:
        options = replace(self.options, autocast_output=autocast_output)
        return OrthogonalParametrization(weight, options)

    @staticmethod
    def saved_weight(state_dict: Mapping[str, Any], prefix: str, name: str) -> Any:
        return state_dict.get(f"{prefix}parametrizations.{name}.original")
