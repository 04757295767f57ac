"""What the options of a spectral norm may be: one sentence where one is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from .functional import matrix_shape

POLICIES = ("access", "update")


def check_numbers(n_power_iterations: int, eps: float) -> None:
    """Raise ValueError for a number of iterations below 1 or an eps not between 0 and infinity."""
    if not _is_integer(n_power_iterations) or n_power_iterations < 1:
        raise ValueError(
            f"n_power_iterations must be an integer of at least 1, got {n_power_iterations!r}"
        )
    if not isinstance(eps, int | float) or not 0 < eps < float("inf"):
        raise ValueError(f"eps must be positive and finite, got {eps!r}")


def check_policy(power_iter: str) -> None:
    """Raise ValueError for a policy that is neither "access" nor "update"."""
    if power_iter not in POLICIES:
        raise ValueError(f"power_iter must be one of {', '.join(POLICIES)}, got {power_iter!r}")


def check_flag(name: str, value: object) -> None:
    """Raise TypeError for what is not True or False: the string "False" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_dim(dim: int, shape: torch.Size) -> None:
    """Raise ValueError for a dim that is no integer, IndexError for one that ``shape`` lacks."""
    if not _is_integer(dim):
        raise ValueError(f"dim must be an integer, got {dim!r}")
    if not -len(shape) <= dim < len(shape):
        raise IndexError(
            f"dim must be in [{-len(shape)}, {len(shape) - 1}] for a parameter of shape "
            f"{tuple(shape)}, got {dim}"
        )


def check_vectors(vectors: tuple[Tensor, Tensor], weight: Tensor, dim: int) -> None:
    """Raise ValueError where u and v are not those of a weight of this shape."""
    shapes = [tuple(vector.shape) for vector in vectors]
    expected = [(size,) for size in matrix_shape(weight, dim)]
    if shapes != expected:
        raise ValueError(
            f"vectors must be u and v of shapes {expected[0]} and {expected[1]} for a weight of "
            f"shape {tuple(weight.shape)} and dim {dim}, got {shapes}"
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
