"""The life cycle of one normalized parameter."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    register_parametrization,
    remove_parametrizations,
)

from ..ops.dispatch import select
from ..parametrizations.base import Parametrization, evaluating
from ..parametrizations.options import Options, SpectralNormOptions, check_dim
from ..parametrizations.singular_vectors import WARM_UP_ITERATIONS
from ..parametrizations.spectral_norm import SpectralNormParametrization
from .access import refresh_list
from .copying import make_copyable
from .fresh import constrain
from .lazy import Waiting, waiting
from .loading import forget_checkpoints, take_checkpoints
from .refusals import check_removable, check_sharding, check_tensor, no_parameter

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Their weights autocast leaves in float32, here or on some device.
_NOT_CAST = (nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase)


class SpectralNormWrapper:
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
        >>> wrapper = SpectralNormWrapper(nn.Linear(20, 40), "weight")
        >>> module = wrapper.attach()
        >>> wrapper.sigma.shape
        torch.Size([])
        >>> module = wrapper.remove()
    """

    def __init__(
        self,
        module: nn.Module,
        name: str = "weight",
        *,
        init_on_first_forward: bool = True,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {_describe(module)}")
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {name!r}")
        self.module = module
        self.name = name
        self.init_on_first_forward = init_on_first_forward
        self.options = SpectralNormOptions.of(options)

    @property
    def parametrizations(self) -> list[SpectralNormParametrization]:
        """Those registered on the parameter, in the order they apply: two or more where stacked."""
        if not is_parametrized(self.module, self.name):
            return []
        return [p for p in self._list() if isinstance(p, SpectralNormParametrization)]

    @property
    def is_deferred(self) -> bool:
        """Whether the module is lazy and registration waits for its parameters."""
        return bool(waiting(self.module, self.name))

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

    def check(self) -> None:
        """Raise what :meth:`attach` would raise; an access that would iterate is not made."""
        tensor = self.original
        if is_lazy(tensor):
            if not self.init_on_first_forward:
                raise ValueError(
                    f"init_on_first_forward=False needs {self._where()} to have its shape, but "
                    "it is lazy: run a forward first, or leave init_on_first_forward at True"
                )
            return
        check_tensor(tensor, self._where())
        check_dim(self._dim(tensor), tensor.shape)
        select(tensor, self.options.backend)
        check_sharding(self.module, tensor, self._where(), self.options.backend)

    def attach(self) -> nn.Module:
        """Register now or, on a lazy module, when it materializes. Returns the module."""
        self.check()
        if is_lazy(self.original):
            Waiting(self.name, self.options, _register).wait(self.module)
            return self.module
        with _no_autocast(self.original):
            # As torch: where the parameter is normalized already, this access iterates.
            weight = getattr(self.module, self.name)
            autocasts = self.options.autocast_output and not isinstance(self.module, _NOT_CAST)
            options = replace(self.options, dim=self._dim(weight), autocast_output=autocasts)
            parametrization = SpectralNormParametrization(weight, options)
            parametrization.follows_steps_alone = is_parametrized(self.module, self.name)
            register_parametrization(self.module, self.name, parametrization)
        self.adopt()
        return self.module

    def put_back(self, parametrizations: Sequence[Parametrization]) -> None:
        """Register what was taken off, as it is: neither torch's checks nor an iteration."""
        for parametrization in parametrizations:
            register_parametrization(self.module, self.name, parametrization, unsafe=True)
        self._list().unsafe = False
        self.adopt()

    def adopt(self) -> None:
        """Make of a module that ours is registered on what :meth:`attach` makes of it."""
        constrain(self.module, self.name)
        take_checkpoints(self.module)
        make_copyable(self.module)

    def refresh(self, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        """As :func:`snorm_triton.refresh_spectral_norm`, of this parameter."""
        refresh_list(self._list(), n_power_iterations)

    def remove(self, *, leave_parametrized: bool = True) -> nn.Module:
        """Take ours off the parameter, without iterating. Returns the module.

        ``leave_parametrized=True`` leaves the tensor as it is, ``False`` as it was before ours.
        Other parametrizations stay. The parameter stays the same object, so that optimizers keep
        it.
        """
        deferred = waiting(self.module, self.name)
        if not self.parametrizations and not deferred:
            raise ValueError(f"no spectral norm of snorm_triton is registered on {self._where()}")
        if self.parametrizations:
            check_removable(self._list(), self._where())
        for each in deferred:
            each.cancel()
        if self.parametrizations:
            with evaluating(), _no_autocast(self.original):
                if all(isinstance(p, SpectralNormParametrization) for p in self._list()):
                    remove_parametrizations(self.module, self.name, leave_parametrized)
                else:
                    self._remove_among_others(leave_parametrized)
            if is_parametrized(self.module):
                make_copyable(self.module)
        if not waiting(self.module):
            forget_checkpoints(self.module)
        return self.module

    def _remove_among_others(self, leave_parametrized: bool) -> None:
        parametrizations = self._list()
        ours = self.parametrizations
        if leave_parametrized:
            if list(parametrizations)[: len(ours)] != ours or not parametrizations.is_tensor:
                raise ValueError(
                    f"{self._where()} has another parametrization before its spectral norm, whose "
                    "input would have to change: use leave_parametrized=False, or take all of them "
                    "off with torch.nn.utils.parametrize.remove_parametrizations"
                )
            with torch.no_grad():
                normalized = parametrizations.original
                for each in ours:
                    normalized = each(normalized)
                parametrizations.original.copy_(normalized)
        for position in reversed(range(len(parametrizations))):
            if isinstance(parametrizations[position], SpectralNormParametrization):
                del parametrizations[position]
        parametrizations.__class__ = ParametrizationList

    def _list(self) -> ParametrizationList:
        parametrizations: Any = self.module.parametrizations
        return parametrizations[self.name]  # type: ignore[no-any-return]

    @property
    def original(self) -> Tensor:
        """The parameter or buffer before normalization; ValueError where there is none."""
        if is_parametrized(self.module, self.name):
            parametrizations = self._list()
            if parametrizations.is_tensor:
                return parametrizations.original
            with evaluating(), torch.no_grad():
                return parametrizations()  # type: ignore[no-any-return]
        tensor = self.module._parameters.get(self.name, self.module._buffers.get(self.name))
        if tensor is None:
            raise no_parameter(self.module, self.name)
        return tensor

    def _dim(self, tensor: Tensor) -> int:
        if self.options.dim is not None:
            return self.options.dim
        return 1 if isinstance(self.module, _TRANSPOSED) and tensor.ndim > 1 else 0

    def _where(self) -> str:
        return f"parameter {self.name!r} of {type(self.module).__name__}"


def _register(module: nn.Module, name: str, options: SpectralNormOptions) -> None:
    SpectralNormWrapper(module, name, **asdict(options)).attach()


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """torch's checks take a weight in autocast's dtype for a mistake."""
    kind = tensor.device.type
    has_autocast = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if has_autocast else nullcontext()


def _describe(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
