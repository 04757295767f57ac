"""What a transform of ``torch.func`` or forward-mode differentiation makes of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .door import private


def _never(*args: object) -> bool:
    return False


_MODULE = "torch._C._functorch"
_transforms_active = private("torch._C", "_are_functorch_transforms_active", _never)
_no_transforms = private("torch._C", "_DisableFuncTorch", nullcontext)
is_wrapped: Any = private(_MODULE, "is_functorch_wrapped_tensor", _never)
"""Whether a tensor is what a transform has made of one."""
_is_batched = private(_MODULE, "is_batchedtensor", _never)
_is_legacy_batched = private(_MODULE, "is_legacy_batchedtensor", _never)
_level_of = private(_MODULE, "maybe_get_level")
_axis_of = private(_MODULE, "maybe_get_bdim")
_unwrapped = private(_MODULE, "get_unwrapped")
_counts_levels = private("torch.autograd.forward_ad", "_current_level") is not None
_takes_apart = None not in (_level_of, _axis_of, _unwrapped)


def active() -> bool:
    """Whether a transform is being taken, or a forward derivative."""
    if _transforms_active():
        return True
    return _counts_levels and forward_ad._current_level >= 0


def taken_of(grads: Iterable[Tensor]) -> bool:
    """Whether a transform takes a backward apart, or one of many gradients at a time does."""
    if _transforms_active() or (_counts_levels and forward_ad._current_level >= 0):
        return True
    return any(map(_is_legacy_batched, grads))


def write(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value to its buffer, past the transforms, where they leave it one value."""
    for buffer, value in zip(buffers, values, strict=True):
        place, place_levels = _memory_of(buffer)
        fresh, fresh_levels = _memory_of(value)
        if not set(fresh_levels) <= set(place_levels):
            continue
        with _no_transforms(), torch.no_grad():
            for axis, level in enumerate(place_levels):
                if level not in fresh_levels:
                    fresh = fresh.unsqueeze(axis)
            place.copy_(fresh)


def plain(tensor: Tensor) -> Tensor:
    """The tensor below all transforms, of the samples of every ``vmap`` together."""
    while _takes_apart and is_wrapped(tensor):
        tensor = _unwrapped(tensor)
    return tensor


def _memory_of(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """As :func:`plain`, with the axes of every ``vmap`` in front, and their levels."""
    batched = []
    while _takes_apart and is_wrapped(tensor):
        if _is_batched(tensor):
            batched.append((_level_of(tensor), _axis_of(tensor)))
        tensor = _unwrapped(tensor)
    axes = list(range(tensor.ndim))
    leading = [axes.pop(axis) for _, axis in reversed(batched)]
    with _no_transforms(), torch.no_grad():
        return tensor.permute(leading + axes), [level for level, _ in reversed(batched)]
