"""The properties by which a module's constrained tensors are read."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..parametrizations.base import SUFFIXES, Parametrization
from ..torch_internals.hooks import has_hooks
from ..torch_internals.parametrize import is_caching
from .access import originals_of


def make_fast(cls: type[nn.Module], name: str) -> None:
    """Read the tensor ``name`` past Module's attribute lookup and Module.__call__.

    On the class that torch has made for the one module.
    """
    torchs = vars(cls)[name]
    if getattr(torchs.fget, "is_ours", False):
        return

    def get(module: nn.Module) -> Any:
        parametrizations: Any = module._modules["parametrizations"]
        each = parametrizations._modules[name]
        known = each.__dict__
        ready = known.get("_ready")
        if ready is not None and not torch.compiler.is_compiling() and not is_caching():
            tensor = ready.read(known)
            if tensor is not None:
                return tensor
        if is_caching() or has_hooks(known) or type(each) is ParametrizationList:
            return torchs.fget(module)
        return each.forward()

    get.is_ours = True  # type: ignore[attr-defined]
    setattr(cls, name, property(get, torchs.fset))


def read_through(cls: type[nn.Module], name: str) -> None:
    """Let what torch's hooks call ``weight_orig``, ``weight_u`` and the like be read; no state."""
    for suffix in SUFFIXES:
        if not hasattr(cls, name + suffix):
            setattr(cls, name + suffix, property(partial(_read, name=name, suffix=suffix)))


def _read(module: nn.Module, name: str, suffix: str) -> Tensor:
    all_lists: Any = module._modules.get("parametrizations")
    parametrizations: Any = () if all_lists is None else all_lists._modules.get(name, ())
    for each in parametrizations:
        found = None
        if isinstance(each, Parametrization):
            found = each.alias(suffix, tuple(originals_of(parametrizations).values()))
        if found is not None:
            return found
    raise AttributeError(f"{type(module).__name__} has no attribute {name + suffix!r}")
