"""Streams of a device, on which work that was queued elsewhere may not have been done yet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch_internals.autograd import raw_stream

_TYPES = ("cuda", "xpu")


def current(device: torch.device) -> Any:
    """The stream that work for ``device`` is queued on; None where there are none, as on a CPU."""
    if device.type not in _TYPES:
        return None
    return torch.get_device_module(device).current_stream(device)


def handle(device: torch.device) -> int | None:
    """What tells the current stream from others, sooner than the stream itself; None likewise."""
    if device.type not in _TYPES:
        return None
    if raw_stream is not None and device.type == "cuda":
        number: int = raw_stream(device.index)
        return number
    return hash(current(device))


def is_capturing(device: torch.device) -> bool:
    """Whether launches are recorded into a graph, which replays them at fixed addresses."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def hand_over(made_on: Any, *tensors: Tensor) -> None:
    """Let the current stream use tensors whose memory and values come from another.

    It waits for the values, and the allocator waits for it before it gives the memory away.
    """
    now = current(tensors[0].device)
    if now != made_on:
        now.wait_stream(made_on)
        for tensor in tensors:
            tensor.record_stream(now)
