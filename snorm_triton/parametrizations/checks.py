"""What an option may be: one sentence where it is something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def check_iterations(number: int, name: str = "n_power_iterations") -> None:
    """Raise ValueError for a number of iterations below 1."""
    if not is_integer(number) or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {number!r}")


def check_input_shape(shape: Any, operator: str) -> None:
    """Raise ValueError for what is not the shape of an image, or not asked for."""
    is_shape = isinstance(shape, Sequence) and all(is_integer(size) and size > 0 for size in shape)
    if not is_shape:
        raise ValueError(
            f"input_shape must be positive integers (C, *spatial) without the batch, got {shape!r}"
        )
    if operator == "matrix":
        raise ValueError("input_shape is of operator='convolution' alone")


def check_flag(name: str, value: object) -> None:
    """Raise TypeError for what is not True or False: the string "False" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_dim(dim: int, shape: torch.Size) -> None:
    """Raise IndexError for a dim that ``shape`` lacks."""
    if not -len(shape) <= dim < len(shape):
        raise IndexError(
            f"dim must be in [{-len(shape)}, {len(shape) - 1}] for a parameter of shape "
            f"{tuple(shape)}, got {dim}"
        )


def check_among(option: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ValueError for a value that is not known."""
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {value!r}")


def check_dim_is_integer(dim: object) -> None:
    if dim is not None and not is_integer(dim):
        raise ValueError(f"dim must be an integer, got {dim!r}")


def is_integer(value: object) -> bool:
    """Whether it is one, and no flag."""
    return isinstance(value, int) and not isinstance(value, bool)
