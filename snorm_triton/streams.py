"""Streams of a device, on which work that was queued elsewhere may not have been done yet."""

from __future__ import annotations

import torch
from torch import Tensor


def current(device: torch.device) -> torch.Stream | None:
    """The stream that work for ``device`` is queued on; None where there are none, as on a CPU."""
    if device.type in ("cpu", "meta"):
        return None
    return torch.accelerator.current_stream(device)


def hand_over(tensor: Tensor, made_on: torch.Stream) -> None:
    """Let the current stream use a tensor whose memory and values come from another.

    It waits for the values, and the allocator waits for it before it gives the memory away.
    """
    now = current(tensor.device)
    if now is not None and now != made_on:
        now.wait_stream(made_on)
        tensor.record_stream(now)
