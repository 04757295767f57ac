"""Copies and pickles of parametrized modules that stand on their own.

torch puts the property for a parametrized tensor on a class made for the one module. Its deepcopy
shares that class, so that removing the parametrization from the copy breaks the original and
``parametrize.cached()`` hands the copy the original's weight, and pickling is refused. Here a copy,
of either kind, gets a class of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import register_parametrization

from ..parametrizations.base import evaluating
from .initialization import reset_originals
from .reading import make_fast, read_through
from .refusals import refuse_parallelizing


def make_copyable(module: nn.Module) -> None:
    """Let ``copy.deepcopy`` and ``pickle`` take the parametrized ``module``.

    And ``reset_parameters``, which the copies' classes need as well, reach what it initializes.
    """
    cls = type(module)
    cls.__reduce_ex__ = _reduce  # type: ignore[assignment, method-assign]
    # torch's own would come first; a __deepcopy__ of the module's real class is inherited and
    # stays.
    if "__deepcopy__" in vars(cls):
        del cls.__deepcopy__  # type: ignore[attr-defined]
    refuse_parallelizing(cls)
    if hasattr(cls, "reset_parameters"):
        cls.reset_parameters = reset_originals
    if isinstance(module, LazyModuleMixin):
        _keep_parametrized_on_materialization(cls)


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """``__reduce_ex__``: the class before parametrization, the names, and the state it gives."""
    cls = type(module).__bases__[0]
    parametrizations: Any = module.parametrizations
    # The state of an LSTM reads and keeps its weights: they must not iterate, nor hold a graph.
    with evaluating(), torch.no_grad():
        state = cls.__getstate__(module)  # type: ignore[call-arg]
    return _rebuild, (cls, tuple(parametrizations)), state


def _rebuild(cls: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """An empty module of ``cls``, parametrized in ``names``, to take a state."""
    module = cls.__new__(cls)
    _give_class(module, names)
    return module


def own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own: torch's deepcopy lets it share one."""
    parametrizations: Any = module.parametrizations
    names, state = tuple(parametrizations), dict(module.__dict__)
    module.__class__ = type(module).__bases__[0]
    module.__dict__.clear()
    _give_class(module, names)
    module.__dict__.update(state)


def _give_class(module: nn.Module, names: tuple[str, ...]) -> None:
    """Make an instance without state one of a new class, parametrized in ``names``."""
    nn.Module.__init__(module)
    for name in names:
        module.register_buffer(name, torch.empty(0))
        register_parametrization(module, name, nn.Identity(), unsafe=True)
        make_fast(type(module), name)
        read_through(type(module), name)
    make_copyable(module)
    module.__dict__.clear()


def _keep_parametrized_on_materialization(cls: type[nn.Module]) -> None:
    """A lazy module becomes another class at its first forward: parametrize that one too."""
    becomes = cls.__bases__[0].cls_to_become  # type: ignore[attr-defined]
    if becomes is not None:
        injected = {key: value for key, value in vars(cls).items() if key != "cls_to_become"}
        cls.cls_to_become = type(  # type: ignore[attr-defined]
            f"Parametrized{becomes.__name__}", (becomes,), injected
        )
