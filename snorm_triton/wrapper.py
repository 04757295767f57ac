"""The life cycle of one normalized parameter, lazy modules included."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    register_parametrization,
    remove_parametrizations,
)
from torch.utils.hooks import RemovableHandle

from .checkpoint import legacy_keys, parametrized_keys
from .checks import check_dim, check_flag, check_numbers, check_policy
from .copying import make_copyable
from .dispatch import BACKENDS, select
from .loading import before_load, forget_checkpoints, take_checkpoints
from .parametrization import SpectralNormParametrization, without_iterating
from .parametrization_list import SpectralNormList, watches
from .refusals import check_removable, check_sharding
from .singular_vectors import WARM_UP_ITERATIONS

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
)
OPTIONS = tuple(
    option
    for option in inspect.signature(SpectralNormParametrization).parameters
    if option not in ("weight", "vectors")
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class SpectralNormWrapper:
    """One parameter of one module and its spectral normalization.

    Holds no state of its own: it reads the module, so that any number of wrappers of the same
    parameter agree.

    Args:
        module: the module that holds the parameter.
        name: the parameter's attribute name.
        init_on_first_forward: for a lazy module, register when its parameters materialize, before
            its first forward is computed.
        options: those of :class:`SpectralNormParametrization`; ``dim=None`` is 0, and 1 for
            ConvTranspose1d to 3d.

    Raises:
        ValueError, IndexError: as :func:`snorm_triton.spectral_norm`; nothing is changed then.

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
        **options: Any,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {_describe(module)}")
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {name!r}")
        for option in options.keys() - set(OPTIONS):
            raise TypeError(f"unknown option {option!r}; the options are {', '.join(OPTIONS)}")
        self.module = module
        self.name = name
        self.init_on_first_forward = init_on_first_forward
        self.options = options

    @property
    def parametrizations(self) -> list[SpectralNormParametrization]:
        """Those registered on the parameter, in the order they apply: two or more where stacked."""
        if not is_parametrized(self.module, self.name):
            return []
        return [p for p in self._list() if isinstance(p, SpectralNormParametrization)]

    @property
    def is_deferred(self) -> bool:
        """Whether the module is lazy and registration waits for its parameters."""
        return bool(self._deferred())

    @property
    def sigma(self) -> Tensor:
        """The last sigma, shape (); where stacked, their product. LookupError before ``attach``."""
        if not self.parametrizations:
            raise LookupError(f"no spectral norm of snorm_triton is registered on {self._where()}")
        return torch.stack([p.sigma for p in self.parametrizations]).prod()

    def check(self) -> None:
        """Raise what :meth:`attach` would raise; an access that would iterate is not made."""
        tensor = self.original
        check_numbers(self.options.get("n_power_iterations", 1), self.options.get("eps", 1e-12))
        check_policy(self.options.get("power_iter", "access"))
        for flag in ("stable_fp32", "power_iter_on_eval", "autocast_output"):
            check_flag(flag, self.options.get(flag, False))
        backend = self.options.get("backend", "auto")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        if is_lazy(tensor):
            if not self.init_on_first_forward:
                raise ValueError(
                    f"init_on_first_forward=False needs {self._where()} to have its shape, but "
                    "it is lazy: run a forward first, or leave init_on_first_forward at True"
                )
            return
        if tensor.layout != torch.strided:
            raise ValueError(f"{self._where()} is sparse ({tensor.layout}); it must be dense")
        if tensor.dtype not in DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"{self._where()} is {tensor.dtype}; it must be one of {names}")
        if tensor.ndim == 0:
            raise ValueError(f"{self._where()} is a scalar; it must have a dimension or more")
        check_dim(self._dim(tensor), tensor.shape)
        select(tensor, backend)
        check_sharding(self.module, tensor, self._where(), backend)

    def attach(self) -> nn.Module:
        """Register now or, on a lazy module, when it materializes. Returns the module."""
        self.check()
        if is_lazy(self.original):
            _Deferred(self.name, self.options).wait(self.module)
            return self.module
        with _no_autocast(self.original):
            # As torch: where the parameter is normalized already, this access iterates.
            weight = getattr(self.module, self.name)
            options = {**self.options, "dim": self._dim(weight)}
            parametrization = SpectralNormParametrization(weight, **options)
            parametrization.follows_steps_alone = is_parametrized(self.module, self.name)
            register_parametrization(self.module, self.name, parametrization)
        self.adopt()
        return self.module

    def put_back(self, parametrizations: Sequence[SpectralNormParametrization]) -> None:
        """Register what was taken off, as it is: neither torch's checks nor an iteration."""
        for parametrization in parametrizations:
            register_parametrization(self.module, self.name, parametrization, unsafe=True)
        self._list().unsafe = False
        self.adopt()

    def adopt(self) -> None:
        """Make of a module that ours is registered on what :meth:`attach` makes of it."""
        self._list().__class__ = SpectralNormList
        if watches(self.module) and self._list().is_tensor:
            self._list().watched = self.name  # type: ignore[assignment]
        take_checkpoints(self.module)
        make_copyable(self.module)

    @torch.no_grad()
    def refresh(self, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        """As :func:`snorm_triton.refresh_spectral_norm`, of this parameter."""
        parametrizations = self._list()
        tensors = parametrizations._parameters or parametrizations._buffers
        inputs: list[Any] = list(tensors.values())
        with without_iterating(parametrizations):
            for parametrization in parametrizations:
                if isinstance(parametrization, SpectralNormParametrization):
                    parametrization.refresh(inputs[0], n_power_iterations)
                if parametrization is not parametrizations[-1]:
                    inputs = [parametrization(*inputs)]

    def remove(self, *, leave_parametrized: bool = True) -> nn.Module:
        """Take every parametrization off the parameter, without iterating. Returns the module.

        ``leave_parametrized=True`` leaves the normalized weight, ``False`` the weight as it was.
        The parameter stays the same object, so that optimizers keep it.
        """
        deferred = self._deferred()
        if not self.parametrizations and not deferred:
            raise ValueError(f"no spectral norm of snorm_triton is registered on {self._where()}")
        if self.parametrizations:
            check_removable(self._list(), self._where())
        for waiting in deferred:
            waiting.cancel()
        if self.parametrizations:
            with without_iterating(self._list()), _no_autocast(self.original):
                remove_parametrizations(self.module, self.name, leave_parametrized)
            if is_parametrized(self.module):
                make_copyable(self.module)
        if not _waiting(self.module):
            forget_checkpoints(self.module)
        return self.module

    def _list(self) -> ParametrizationList:
        parametrizations: Any = self.module.parametrizations
        return parametrizations[self.name]  # type: ignore[no-any-return]

    def _deferred(self) -> list[_Deferred]:
        return [waiting for waiting in _waiting(self.module) if waiting.name == self.name]

    @property
    def original(self) -> Tensor:
        """The parameter or buffer before normalization; ValueError where there is none."""
        if is_parametrized(self.module, self.name):
            parametrizations = self._list()
            if parametrizations.is_tensor:
                return parametrizations.original
            with without_iterating(parametrizations), torch.no_grad():
                return parametrizations()  # type: ignore[no-any-return]
        tensor = self.module._parameters.get(self.name, self.module._buffers.get(self.name))
        if tensor is None:
            names = [name for name, each in self.module._parameters.items() if each is not None]
            raise ValueError(
                f"name={self.name!r} is not a parameter of {type(self.module).__name__}; it has "
                f"{', '.join(names) or 'none'}{self._hook_in_the_way() or self._other_call()}"
            )
        return tensor

    def _dim(self, tensor: Tensor) -> int:
        dim: int | None = self.options.get("dim")
        if dim is not None:
            return dim
        return 1 if isinstance(self.module, _TRANSPOSED) and tensor.ndim > 1 else 0

    def _hook_in_the_way(self) -> str:
        """What to say where a legacy hook, such as that of weight_norm, computes the parameter."""
        for hook in self.module._forward_pre_hooks.values():
            if getattr(hook, "name", None) == self.name:
                return f" (a {type(hook).__name__} hook computes {self.name!r}: remove that first)"
        return ""

    def _other_call(self) -> str:
        """What to say where the parameters are those of submodules."""
        has_others = any(child is not None for child in self.module._modules.values())
        return "; for those of its submodules: apply_spectral_norm" if has_others else ""

    def _where(self) -> str:
        return f"parameter {self.name!r} of {type(self.module).__name__}"


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """torch's checks take a weight in autocast's dtype for a mistake."""
    kind = tensor.device.type
    has_autocast = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if has_autocast else nullcontext()


def _describe(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


class _Deferred:
    """A registration that waits for a lazy parameter: a forward pre-hook and a load hook in one.

    It runs after the mixin's own pre-hook has materialized the parameters, so the first output is
    normalized. It holds names and numbers alone, so that the module can be copied and pickled.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name = name
        self.options = options
        self.handles: tuple[RemovableHandle, ...] = ()
        self.attached = False

    def wait(self, module: nn.Module) -> None:
        take_checkpoints(module)  # not while attaching: torch iterates over the load hooks then
        self.handles = (
            module.register_forward_pre_hook(self),
            module.register_load_state_dict_pre_hook(self.before_load),
        )

    def cancel(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __call__(self, module: nn.Module, args: Any) -> None:
        # Cancelled last: where registering fails, every forward says so.
        if not self.attached:
            self.attach(module)
        self.cancel()

    def attach(self, module: nn.Module) -> None:
        SpectralNormWrapper(module, self.name, **self.options).attach()
        self.attached = True

    def before_load(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Register before a checkpoint of a normalized module is loaded.

        The hooks stay until the first forward: torch is iterating over them here.
        """
        original = state_dict.get(parametrized_keys(prefix, self.name)[0])
        legacy_original, legacy_u, _ = legacy_keys(prefix, self.name)
        if original is None and legacy_u in state_dict:
            original = state_dict.get(legacy_original)
        if self.attached or original is None or is_lazy(original):
            return
        tensor = module._parameters.get(self.name)
        if isinstance(tensor, UninitializedParameter):
            with torch.no_grad():
                tensor.materialize(original.shape)
                tensor.copy_(original)
            if isinstance(module, nn.Linear) and self.name == "weight":
                # LazyLinear would read the weight for it, and so iterate.
                module.in_features = original.shape[1]
        self.attach(module)
        before_load(module, state_dict, prefix, *args)


def _waiting(module: nn.Module) -> list[_Deferred]:
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, _Deferred) and not hook.attached]
