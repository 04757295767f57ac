"""What records or traces the code that runs, besides torch.compile, which says so itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .door import private

F = TypeVar("F", bound=Callable[..., Any])

_jit: Any = torch.jit
is_tracing: Any = private("torch._C", "_is_tracing", _jit.is_tracing)
"""Whether torch.jit.trace records."""
_has_flag = private("torch.compiler", "_is_exporting_flag") is not None


def is_exporting() -> bool:
    """Whether torch.export traces."""
    # The flag itself: is_exporting() is true of all that torch 2.11 compiles.
    return torch.compiler._is_exporting_flag if _has_flag else torch.compiler.is_exporting()


def constant_while_compiling(function: F) -> F:
    """torch.compiler.assume_constant_result, without importing the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
