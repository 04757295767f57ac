"""What the arguments of the models may be: one sentence where one is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import index

from torch import Tensor, nn

Normalization = Callable[[nn.Module], nn.Module]
"""Takes a layer, returns it normalized: `spectral_norm` is one."""


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for the first that is no integer of at least 1."""
    for name, size in sizes.items():
        if not _is_size(size):
            raise ValueError(f"{name} must be an integer of at least 1, got {size!r}")


def check_normalization(normalization: Normalization | None) -> None:
    """Raise TypeError for what cannot be called with a layer, such as a name."""
    if normalization is not None and not callable(normalization):
        raise TypeError(
            "normalization must be a function that takes a layer and returns it, such as "
            "snorm_triton.spectral_norm or torch.nn.utils.parametrizations.spectral_norm, or None "
            f"for none at all; got {normalization!r}"
        )


def check_labels(y: Tensor | None, num_classes: int | None) -> None:
    """Raise ValueError for labels that are missing, unexpected, or not of shape (N,)."""
    if num_classes is None and y is not None:
        raise ValueError("y was given, but the model is unconditional: build it with num_classes")
    if num_classes is not None and y is None:
        raise ValueError(f"y is missing: the model is conditional, num_classes={num_classes}")
    if isinstance(y, Tensor) and y.ndim != 1:  # torch.fx traces with something else
        raise ValueError(f"y must have shape (N,), one label for each, got {tuple(y.shape)}")


def widths_of(channels: int | Sequence[int], length: int) -> list[int]:
    """One width for each of `length` places; ValueError where `channels` does not give them."""
    widths = [*channels] if isinstance(channels, Iterable) else [channels] * length
    if len(widths) != length or not all(map(_is_size, widths)):
        raise ValueError(
            f"channels must be an integer of at least 1, or {length} of them, got {channels!r}"
        )
    return [index(width) for width in widths]


def _is_size(value: object) -> bool:
    try:
        return not isinstance(value, bool) and index(value) >= 1  # type: ignore[arg-type]
    except TypeError:
        return False
