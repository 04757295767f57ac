"""Where a kernel is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the current one: Triton launches there. Nothing to do on the CPU."""
    if tensor.device.type == "cpu":
        return nullcontext()
    return torch.accelerator.device_index(tensor.device.index)


def warp_size(device: torch.device) -> int:
    """Threads in a warp: 64 on ROCm's data-center devices, 32 elsewhere."""
    return 64 if device.type == "cuda" and torch.version.hip is not None else 32
