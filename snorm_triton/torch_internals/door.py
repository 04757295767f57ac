"""How a private name of torch is asked for."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch


def private(module: str, name: str, fallback: Any = None) -> Any:
    """``module.name``, or the fallback in a torch that has no such thing."""
    found: Any = import_module(module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        return fallback
    return found


def without(name: str, consequence: str, result: Any) -> Any:
    """A function in place of a missing one: it returns ``result``, and warns the first time."""
    told = False

    def stand_in(*args: Any) -> Any:
        nonlocal told
        if not told:
            told = True
            warnings.warn(
                f"torch {torch.__version__} has no {name}, so {consequence}",
                UserWarning,
                stacklevel=3,
            )
        return result

    return stand_in
