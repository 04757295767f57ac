"""Work apart from the modes that torch is in: tracers, hooks on saved tensors, dispatch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")


def aside(function: Callable[[], R]) -> R:
    """The result of ``function`` in a thread of its own, where no mode has been entered."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(function).result()
