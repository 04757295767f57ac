"""Which buffers of a module nobody has changed since some time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..torch_internals.storage import memory_of, version

Identity = tuple[Any, int]
"""The memory of a tensor, and its version."""


def identity_of(module: nn.Module, name: str) -> Identity:
    """That of a buffer of ``module``."""
    tensor: Any = module._buffers[name]  # past Module's attribute lookup
    return memory_of(tensor), version(tensor)


def identities(module: nn.Module, names: Iterable[str]) -> dict[str, Identity]:
    """Those of the buffers of these names, now."""
    return {name: identity_of(module, name) for name in names}


def unchanged(module: nn.Module, then: Mapping[str, Identity]) -> tuple[str, ...]:
    """The names of those that are what they were."""
    return tuple(name for name, each in then.items() if identity_of(module, name) == each)
