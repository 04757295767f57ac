"""What there is: versions, devices, and which backend takes a weight on each, and why."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from .. import __version__
from ..ops.dispatch import BACKENDS, DEFAULT_BACKEND, ENVIRONMENT_VARIABLE, Choice, select


class Device(NamedTuple):
    """A device of torch, its name, and the backend of a float32 weight there."""

    device: torch.device
    name: str
    choice: Choice


def versions() -> dict[str, str]:
    """Of us, of what we run on, and of what steers us."""
    build = torch.version.cuda and f" (CUDA {torch.version.cuda})"
    build = build or (torch.version.hip and f" (ROCm {torch.version.hip})") or ""
    found = {
        "snorm_triton": __version__,
        "torch": torch.__version__ + build,
        "triton": version_of("triton"),
        "numpy": version_of("numpy"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
    for name in (ENVIRONMENT_VARIABLE, "TRITON_INTERPRET"):
        if os.environ.get(name):
            found[name] = os.environ[name]
    return found


def version_of(distribution: str) -> str:
    """That of a distribution; "not installed" where there is none of that name."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def devices() -> list[Device]:
    """The CPU, and what torch finds beside it; ValueError for a backend that there is not."""
    if DEFAULT_BACKEND and DEFAULT_BACKEND not in BACKENDS:
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE} must be one of {', '.join(BACKENDS)}, got {DEFAULT_BACKEND!r}"
        )
    found = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        count = torch.accelerator.device_count()
        found += [torch.device(accelerator.type, index) for index in range(count)]
    return [Device(device, name_of(device), _choice(device)) for device in found]


def _choice(device: torch.device) -> Choice:
    try:
        return select(torch.empty(2, 2, device=device))
    except ValueError as error:  # asked for by the environment, and cannot be
        return Choice("none", str(error))


def name_of(device: torch.device) -> str:
    """What the maker calls it, and how much of it there is."""
    if device.type == "cpu":
        return f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    module = torch.get_device_module(device)
    if not hasattr(module, "get_device_properties"):  # such as mps
        return device.type
    properties = module.get_device_properties(device)
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = module.get_device_capability(device)
        memory += f", compute capability {major}.{minor}"
    return f"{properties.name}, {memory}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
