"""How torch runs an access: eagerly, compiled, in its own operations alone, or on many ranks.

Each way is a module with the functions of :class:`Mode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...torch_internals import functorch
from ...torch_internals.tracing import is_tracing
from ..calls import Access, Normalized
from ..dispatch import is_sharded
from . import compiled, composite, eager


class Mode(Protocol):
    """A way to run accesses."""

    def normalize(self, access: Access) -> Normalized:
        """W / sigma, and the u, v and sigma it took; sigma may have no gradient."""

    def normalize_together(self, accesses: Sequence[Access]) -> list[Normalized]:
        """As ``normalize`` of each, in as few launches, operators and autograd nodes as can be."""

    def write(self, accesses: Sequence[Access], outputs: Sequence[Normalized]) -> None:
        """Overwrite the live state of each access that iterated."""


def current(weight: Tensor) -> Mode:
    """The way of an access to ``weight`` here and now."""
    if is_sharded(weight):
        return _sharded()
    if functorch.active():
        return composite
    if torch.compiler.is_compiling():
        return compiled
    # A tracer may have no operations in its graph but torch's own.
    return composite if is_tracing() else eager


def _sharded() -> Mode:
    from . import sharded

    return sharded
