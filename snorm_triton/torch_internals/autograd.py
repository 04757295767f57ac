"""What autograd does just now, and what it offers to a node that is made often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .door import private, without

backward_id: Callable[[], int] = private(
    "torch._C",
    "_current_graph_task_id",
    without(
        "torch._C._current_graph_task_id",
        "a power iteration is done in recomputations of activation checkpoints too",
        -1,
    ),
)
"""A number of the backward that runs here, -1 outside of any."""

saved_tensors_hooks: Any = private(
    "torch._C._autograd", "_top_saved_tensors_default_hooks", lambda _: True
)
"""Of True, the innermost pair of hooks on saved tensors, None without; True where torch cannot
tell.
"""
raw_stream: Any = private("torch._C", "_cuda_getCurrentRawStream")
"""The handle of a device's current stream, by the device's index; None in a torch without GPUs."""
_foreach_add = private("torch", "_foreach_add_")


class _Function(torch.autograd.Function):
    pass


# What torch.autograd.Function adds to its base is for transforms of torch.func, and takes as long
# as a matrix-vector product of a small weight.
EagerFunction: Any = private("torch.autograd.function", "_SingleLevelFunction", _Function)
compiled_autograd_key: Any = private("torch.autograd", "Function._compiled_autograd_key")


def in_backward() -> bool:
    """Whether this is inside a backward."""
    return backward_id() != -1


def _copy_each_(into: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)


foreach_copy_: Any = private("torch", "_foreach_copy_", _copy_each_)
"""Copy each of some values into its tensor, in as few launches as can be."""


def foreach_add_(tensors: list[Tensor], number: float) -> None:
    """Add a number to each, in as few launches as can be."""
    if _foreach_add is not None:
        _foreach_add(tensors, number)
        return
    for tensor in tensors:
        tensor.add_(number)
