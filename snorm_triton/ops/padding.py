"""What a convolution adds around an image, and the transpose of it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Pairs = tuple[tuple[int, int], ...]
"""For each spatial dimension what is added before it and after it; negative numbers crop."""


def zero_pad(x: Tensor, padding: Pairs) -> Tensor:
    """``x`` of shape (B, C, *spatial) with zeros around it, or less where numbers are negative.

    Its adjoint is that with the negative numbers.
    """
    return F.pad(x, _flat(padding)) if any(map(any, padding)) else x


def pad(x: Tensor, padding: Pairs, mode: str) -> Tensor:
    """``x`` of shape (B, C, *spatial) in the padding of a mode of torch's convolutions."""
    if mode == "zeros":
        return zero_pad(x, padding)
    return F.pad(x, _flat(padding), mode)


def pad_adjoint(y: Tensor, padding: Pairs, mode: str) -> Tensor:
    """The transpose of :func:`pad`: each padded position added to the one that it repeats."""
    for axis, (before, after) in enumerate(padding, 2):
        y = _folded(y, axis, before, after, mode)
    return y


def _folded(y: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    n = y.shape[axis] - before - after
    start, end = y.narrow(axis, 0, before), y.narrow(axis, before + n, after)
    if mode == "circular":
        places = (n - before, 0)
    elif mode == "reflect":
        start, end = start.flip(axis), end.flip(axis)
        places = (1, n - 1 - after)
    else:
        start, end = start.sum(axis, keepdim=True), end.sum(axis, keepdim=True)
        places = (0, n - 1)
    folded = y.narrow(axis, before, n)
    for part, place in zip((start, end), places, strict=True):
        rest = n - place - part.shape[axis]
        around = [(0, 0)] * (axis - 2) + [(place, rest)] + [(0, 0)] * (y.ndim - 1 - axis)
        folded = folded + F.pad(part, _flat(tuple(around)))
    return folded


def _flat(padding: Pairs) -> list[int]:
    """The pairs in the order of ``F.pad``, the last dimension first."""
    return [size for pair in reversed(padding) for size in pair]
