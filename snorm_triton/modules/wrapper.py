"""The life cycle of a constraint on one parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    register_parametrization,
)

from ..parametrizations.base import Parametrization, evaluating
from ..parametrizations.options import ConstraintOptions
from .copying import make_copyable
from .fresh import constrain
from .lazy import Waiting, waiting
from .loading import forget_checkpoints, take_checkpoints
from .refusals import check_removable, check_tensor, no_parameter
from .removal import no_autocast, take_off

# Their weights autocast leaves in float32, here or on some device.
_NOT_CAST = (nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase)


class Wrapper:
    """One parameter of one module and a constraint on it: a subclass says which.

    Holds no state of its own: it reads the module, so that any number of wrappers of the same
    parameter agree.
    """

    kind: ClassVar[type[Parametrization]]
    constraint: ClassVar[str]  # what it is called
    function: ClassVar[str]  # what registers it
    options_type: ClassVar[type[ConstraintOptions]]
    options: Any  # of that type

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
        self.module = module
        self.name = name
        self.init_on_first_forward = init_on_first_forward
        self.options = self.options_type.of(options)

    def check_original(self, tensor: Tensor) -> None:
        """Raise what is wrong with the constraint on ``tensor``."""
        raise NotImplementedError

    def parametrization_of(self, weight: Tensor, autocast_output: bool) -> Parametrization:
        """The parametrization to register, for the weight as it is now."""
        raise NotImplementedError

    @staticmethod
    def saved_weight(state_dict: Mapping[str, Any], prefix: str, name: str) -> Any:
        """The weight that a state dict of any layout holds for the parameter, else None."""
        raise NotImplementedError

    @property
    def waits(self) -> bool:
        """Whether registration has to wait for the module's first forward."""
        return is_lazy(self.original)

    @staticmethod
    def is_complete(options: dict[str, Any], inputs: tuple[Any, ...]) -> bool:
        """Whether ``inputs`` tell all that the options lack."""
        return True

    @staticmethod
    def completed(options: dict[str, Any], module: nn.Module, args: Any) -> dict[str, Any]:
        """The options of one that waited, which may take something from the first input."""
        return options

    @staticmethod
    def saved_input(state_dict: Mapping[str, Any], prefix: str, name: str) -> tuple[Any, ...]:
        """What a state dict tells of an input: a tensor of its shape, or nothing."""
        return ()

    @property
    def parametrizations(self) -> list[Any]:
        """Ours on the parameter, in the order they apply: two or more where stacked."""
        if not is_parametrized(self.module, self.name):
            return []
        return [p for p in self._list() if isinstance(p, self.kind)]

    @property
    def is_deferred(self) -> bool:
        """Whether the module is lazy and registration waits for its parameters."""
        return bool(waiting(self.module, self.name, type(self)))

    def check(self) -> None:
        """Raise what :meth:`attach` would raise; an access that would iterate is not made."""
        tensor = self.original
        if self.waits and not self.init_on_first_forward:
            raise ValueError(
                f"init_on_first_forward=False needs {self._where()} to have its shape, but it "
                f"{'is lazy' if is_lazy(tensor) else 'waits for an input_shape'}: run a forward "
                "first, or leave init_on_first_forward at True"
            )
        if is_lazy(tensor):
            return
        check_tensor(tensor, self._where())
        self.check_original(tensor)

    def attach(self) -> nn.Module:
        """Register now or, on a lazy module, when it materializes. Returns the module."""
        self.check()
        if self.waits:
            Waiting(self.name, asdict(self.options), type(self)).wait(self.module)
            return self.module
        with no_autocast(self.original):
            # As torch: where the parameter is normalized already, this access iterates.
            weight = getattr(self.module, self.name)
            autocasts = self.options.autocast_output and not isinstance(self.module, _NOT_CAST)
            parametrization = self.parametrization_of(weight, autocasts)
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

    def check_attached(self) -> None:
        """Raise ValueError where ours is not on the parameter, or cannot be taken off."""
        if self.parametrizations:
            check_removable(self._list(), self._where())
        elif not self.is_deferred:
            raise ValueError(
                f"no {self.constraint} of snorm_triton is registered on {self._where()}"
            )

    def remove(self, *, leave_parametrized: bool = True) -> nn.Module:
        """Take ours off the parameter, without iterating. Returns the module.

        ``leave_parametrized=True`` leaves the tensor as it is, ``False`` as it was before ours.
        Other parametrizations stay.
        """
        self.check_attached()
        ours = self.parametrizations
        for each in waiting(self.module, self.name, type(self)):
            each.cancel()
        if ours and len(ours) < len(self._list()):
            with evaluating(), no_autocast(self.original):
                self._remove_among_others(leave_parametrized)
        elif ours:
            take_off(self.module, self.name, leave_parametrized)
        if not waiting(self.module):
            forget_checkpoints(self.module)
        return self.module

    def _remove_among_others(self, leave_parametrized: bool) -> None:
        parametrizations = self._list()
        ours = self.parametrizations
        if leave_parametrized:
            if list(parametrizations)[: len(ours)] != ours or not parametrizations.is_tensor:
                raise ValueError(
                    f"{self._where()} has another parametrization before its {self.constraint}, "
                    "whose input would have to change: use leave_parametrized=False, or take all "
                    "of them off with torch.nn.utils.parametrize.remove_parametrizations"
                )
            with torch.no_grad():
                normalized = parametrizations.original
                for each in ours:
                    normalized = each(normalized)
                parametrizations.original.copy_(normalized)
        for position in reversed(range(len(parametrizations))):
            if isinstance(parametrizations[position], self.kind):
                del parametrizations[position]
        if not any(isinstance(each, Parametrization) for each in parametrizations):
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

    def _where(self) -> str:
        return f"parameter {self.name!r} of {type(self.module).__name__}"


def _describe(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
