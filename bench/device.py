"""Which device the benchmarks run on, what it is called, and what else runs beside them."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def find_gpu() -> torch.device | None:
    device = torch.accelerator.current_accelerator(check_available=True)
    # Only these have a Triton backend; on any other accelerator the library takes its torch path.
    return device if device is not None and device.type in ("cuda", "xpu") else None


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    if device.type != "cpu":
        return str(torch.get_device_module(device).get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


def cpu_seconds_of_others() -> float | None:
    """Processor time that other processes have had since boot; None where Linux does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq = map(int, stat.read_text().split(maxsplit=8)[1:8])
    everyone = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return everyone - sum(os.times()[:4])
