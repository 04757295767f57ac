"""What one access allocates, on any device whose allocator reports to torch's profiler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from bench.device import synchronize


def memory_of(run: Callable[[], object], device: torch.device, nbytes: int) -> dict[str, float]:
    """Allocations of `nbytes` or more; all bytes allocated, and the most held at once, in `nbytes`.

    What exists before the call does not count, and what the call returns does.
    """
    run()  # workspaces that stay are allocated now
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        run()
        synchronize(device)
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type().name.lower() == device.type
    ]
    held = peak = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        held += change
        peak = max(peak, held)
    allocated = [change for _, change in events if change > 0]
    return {
        "allocations": sum(change >= nbytes for change in allocated),
        "allocated": sum(allocated) / nbytes,
        "peak": peak / nbytes,
    }
