"""What a transform of ``torch.func`` or forward-mode differentiation makes of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad


def active() -> bool:
    """Whether a transform is being taken, or a forward derivative."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def taken_of(grads: Iterable[Tensor]) -> bool:
    """Whether a transform takes a backward apart, or one of many gradients at a time does."""
    return active() or any(map(_functorch.is_legacy_batchedtensor, grads))


def write(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value to its buffer, past the transforms, where they leave it one value."""
    for buffer, value in zip(buffers, values, strict=True):
        value = value.abs() if value.is_complex() and not buffer.is_complex() else value
        place, place_levels = _memory_of(buffer)
        fresh, fresh_levels = _memory_of(value)
        if not set(fresh_levels) <= set(place_levels):
            continue
        with torch._C._DisableFuncTorch(), torch.no_grad():
            for axis, level in enumerate(place_levels):
                if level not in fresh_levels:
                    fresh = fresh.unsqueeze(axis)
            place.copy_(fresh)


def plain(tensor: Tensor) -> Tensor:
    """The tensor below all transforms, of the samples of every ``vmap`` together."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def _memory_of(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """As :func:`plain`, with the axes of every ``vmap`` in front, and their levels."""
    batched = []
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            level, axis = _functorch.maybe_get_level(tensor), _functorch.maybe_get_bdim(tensor)
            batched.append((level, axis))
        tensor = _functorch.get_unwrapped(tensor)
    axes = list(range(tensor.ndim))
    leading = [axes.pop(axis) for _, axis in reversed(batched)]
    with torch._C._DisableFuncTorch(), torch.no_grad():
        return tensor.permute(leading + axes), [level for level, _ in reversed(batched)]
