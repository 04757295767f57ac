"""The life cycle of one spectral norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor, nn

from ..checkpoints.layouts import legacy_keys, parametrized_keys
from ..ops.convolution import Convolution
from ..ops.dispatch import select
from ..parametrizations.base import Parametrization, evaluating
from ..parametrizations.checks import check_dim
from ..parametrizations.convolution_norm import ConvolutionNormParametrization
from ..parametrizations.options import Options, SpectralNormOptions
from ..parametrizations.singular_vectors import WARM_UP_ITERATIONS
from ..parametrizations.spectral_norm import SpectralNormParametrization
from .access import refresh_list
from .refusals import check_convolution, check_sharding
from .wrapper import Wrapper

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class SpectralNormWrapper(Wrapper):
    """One parameter of one module and its spectral normalization.

    Holds no state of its own: it reads the module, so that any number of wrappers of the same
    parameter agree.

    Args:
        module: the module that holds the parameter.
        name: the parameter's attribute name.
        init_on_first_forward: for a lazy module, register when its parameters materialize, before
            its first forward is computed.
        options: those of :func:`snorm_triton.spectral_norm`; ``dim=None`` is 0, and 1 for
            ConvTranspose1d to 3d.

    Raises:
        ValueError, IndexError, TypeError: as :func:`snorm_triton.spectral_norm`; nothing is changed
            then.

    Example:
        >>> from torch import nn
        >>> from snorm_triton import SpectralNormWrapper
        >>> wrapper = SpectralNormWrapper(nn.Linear(20, 40), "weight")
        >>> module = wrapper.attach()
        >>> wrapper.sigma.shape
        torch.Size([])
        >>> module = wrapper.remove()
    """

    kind: ClassVar[type[Parametrization]] = SpectralNormParametrization
    constraint = "spectral norm"
    function = "spectral_norm"
    options_type = SpectralNormOptions
    options: SpectralNormOptions

    def __init__(
        self,
        module: nn.Module,
        name: str = "weight",
        *,
        init_on_first_forward: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(module, name, init_on_first_forward=init_on_first_forward, **options)

    @property
    def sigma(self) -> Tensor:
        """The last sigma, shape (); where stacked, their product. LookupError before ``attach``."""
        if not self.parametrizations:
            raise LookupError(f"no spectral norm of snorm_triton is registered on {self._where()}")
        return torch.stack(self.sigmas()).prod()

    @torch.no_grad()
    def sigmas(self) -> list[Tensor]:
        """That of each, computed where no access has told it since a checkpoint was loaded."""
        if not all(p.is_sigma_known for p in self.parametrizations) and not self.original.is_meta:
            with evaluating():
                self._list()()
        return [p.sigma for p in self.parametrizations]

    def refresh(self, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        """As :func:`snorm_triton.refresh_spectral_norm`, of this parameter."""
        refresh_list(self._list(), n_power_iterations)

    @property
    def is_of_convolution(self) -> bool:
        """Whether sigma is to be the convolution's own norm."""
        return self.options.operator == "convolution"

    @property
    def waits(self) -> bool:
        """Whether registration has to wait for the module's first forward."""
        return super().waits or (self.is_of_convolution and self.options.input_shape is None)

    def check_original(self, tensor: Tensor) -> None:
        check_dim(self._dim(tensor), tensor.shape)
        if not self.is_of_convolution:
            select(tensor, self.options.backend)
            check_sharding(self.module, tensor, self._where(), self.options.backend)
            return
        check_convolution(self.module, self.name, tensor, self._where(), self.options)
        if self.options.input_shape is not None:
            Convolution.of(cast(Any, self.module), self.options.input_shape, tensor)

    def parametrization_of(
        self, weight: Tensor, autocast_output: bool
    ) -> SpectralNormParametrization:
        options = replace(self.options, dim=self._dim(weight), autocast_output=autocast_output)
        if not self.is_of_convolution:
            return SpectralNormParametrization(weight, options)
        shape = cast(Any, options.input_shape)
        geometry = Convolution.of(cast(Any, self.module), shape, weight).geometry
        return ConvolutionNormParametrization(weight, geometry, options)

    @staticmethod
    def is_complete(options: dict[str, Any], inputs: tuple[Any, ...]) -> bool:
        if options["operator"] == "matrix" or options["input_shape"] is not None:
            return True
        return bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].ndim > 1

    @staticmethod
    def completed(options: dict[str, Any], module: nn.Module, args: Any) -> dict[str, Any]:
        if options["operator"] == "matrix" or options["input_shape"] is not None:
            return options
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "compiled code cannot take the input_shape of operator='convolution' from the "
                "first input: give it, or run a forward before compiling"
            )
        rank = 1 + len(cast(Any, module).kernel_size)  # an image, with or without a batch
        if not args or not isinstance(args[0], Tensor) or args[0].ndim < rank:
            raise ValueError(
                f"input_shape=None takes the shape of the first input of {type(module).__name__}, "
                f"which is not there: give input_shape, {rank} sizes"
            )
        return {**options, "input_shape": tuple(args[0].shape[-rank:])}

    @staticmethod
    def saved_input(state_dict: Mapping[str, Any], prefix: str, name: str) -> tuple[Any, ...]:
        v = state_dict.get(parametrized_keys(prefix, name)[2])
        return () if v is None else (v,)

    @staticmethod
    def saved_weight(state_dict: Mapping[str, Any], prefix: str, name: str) -> Any:
        weight = state_dict.get(parametrized_keys(prefix, name)[0])
        legacy_weight, legacy_u, _ = legacy_keys(prefix, name)
        if weight is None and legacy_u in state_dict:
            weight = state_dict.get(legacy_weight)
        return weight

    def _dim(self, tensor: Tensor) -> int:
        if self.options.dim is not None:
            return self.options.dim
        return 1 if isinstance(self.module, _TRANSPOSED) and tensor.ndim > 1 else 0
