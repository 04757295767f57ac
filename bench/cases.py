"""The layers that are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    channels_last: bool = False
    # Large enough to be slow on a CPU, and no other kind of layer than a smaller case.
    gpu_only: bool = False
    # Compared with torch.compile too, which takes seconds a case.
    compiled: bool = False

    def module(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The layer, with the same weight at every call."""
        torch.manual_seed(0)
        module = self.build().to(device, dtype)
        if self.channels_last:
            module = module.to(memory_format=torch.channels_last)
        return module.train()

    @property
    def layout(self) -> str:
        return "channels_last" if self.channels_last else "contiguous"


def conv2d_512() -> nn.Module:
    return nn.Conv2d(512, 512, 3)


CASES = (
    Case("Linear 1024x1024", lambda: nn.Linear(1024, 1024), compiled=True),
    Case("Linear 4096x4096", lambda: nn.Linear(4096, 4096), gpu_only=True, compiled=True),
    Case("Conv2d 3-64 k3", lambda: nn.Conv2d(3, 64, 3)),
    Case("Conv2d 128-128 k3", lambda: nn.Conv2d(128, 128, 3)),
    Case("Conv2d 512-512 k3", conv2d_512, compiled=True),
    Case("Conv2d 512-512 k3 channels_last", conv2d_512, channels_last=True),
    Case("Conv1d 1024-1024 k41 groups 16", lambda: nn.Conv1d(1024, 1024, 41, groups=16)),
    Case("Conv3d 256-128 k3", lambda: nn.Conv3d(256, 128, 3)),
    Case("ConvTranspose2d 1024-512 k4", lambda: nn.ConvTranspose2d(1024, 512, 4)),
)
