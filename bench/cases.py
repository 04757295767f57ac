"""The layers and models that are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from bench.normalizations import CONVOLUTION_NORM, ORTHOGONAL, SPECTRAL_NORM, WEIGHT_NORM
from bench.vocoders import HiFiGAN
from snorm_triton import SNDCGANDiscriminator, SNResNetDiscriminator


@dataclass(frozen=True)
class Case:
    """A layer, or a model before any of its layers is normalized."""

    name: str
    build: Callable[[], nn.Module]
    channels_last: bool = False
    # Compared with torch.compile too, which takes seconds a layer.
    compiled: bool = False
    constraint: str = SPECTRAL_NORM

    def module(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The layer or model, with the same weights at every call."""
        torch.manual_seed(0)
        module = self.build().to(device, dtype)
        if self.channels_last:
            module = module.to(memory_format=torch.channels_last)
        return module.train()

    def elements(self) -> int:
        """Of all its parameters; nothing is allocated."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.build().parameters())


def conv2d_1024() -> nn.Module:
    return nn.Conv2d(1024, 1024, 3)


def conv_transpose2d() -> nn.Module:
    return nn.ConvTranspose2d(1024, 512, 4)


def of(constraint: str, name: str, build: Callable[[], nn.Module]) -> Case:
    """A case of another constraint."""
    return Case(f"{name}, {constraint}", build, constraint=constraint)


scaled = partial(of, WEIGHT_NORM)


LAYERS = (
    # Of which the host's time is all: what torch's hook does in few operations.
    Case("Linear 32-16", lambda: nn.Linear(32, 16)),
    Case("Conv1d 1-4 k7", lambda: nn.Conv1d(1, 4, 7)),
    Case("Conv2d 64-64 k3 groups 64", lambda: nn.Conv2d(64, 64, 3, groups=64)),
    Case("ConvTranspose1d 32-16 k4", lambda: nn.ConvTranspose1d(32, 16, 4)),
    Case("Embedding 100-16", lambda: nn.Embedding(100, 16)),
    Case("Conv2d 64-64 k3", lambda: nn.Conv2d(64, 64, 3)),
    Case("Linear 1024-1", lambda: nn.Linear(1024, 1)),
    Case("Linear 1024-1024", lambda: nn.Linear(1024, 1024), compiled=True),
    Case("Linear 4096-4096", lambda: nn.Linear(4096, 4096), compiled=True),
    Case("Conv2d 3-64 k3", lambda: nn.Conv2d(3, 64, 3)),
    Case("Conv2d 128-128 k3", lambda: nn.Conv2d(128, 128, 3)),
    Case("Conv2d 512-512 k3", lambda: nn.Conv2d(512, 512, 3), compiled=True),
    Case("Conv2d 1024-1024 k3", conv2d_1024),
    Case("Conv2d 1024-1024 k3 channels_last", conv2d_1024, channels_last=True),
    Case("Conv2d 1536-1536 k3", lambda: nn.Conv2d(1536, 1536, 3)),
    Case("Conv1d 1024-1024 k41 groups 16", lambda: nn.Conv1d(1024, 1024, 41, groups=16)),
    Case("Conv3d 256-128 k3", lambda: nn.Conv3d(256, 128, 3)),
    Case("ConvTranspose2d 1024-512 k4", conv_transpose2d, compiled=True),
    Case("ConvTranspose2d 1024-512 k4 channels_last", conv_transpose2d, channels_last=True),
    scaled("Conv1d 1-32 k7", lambda: nn.Conv1d(1, 32, 7)),
    scaled("Conv1d 32-32 k3", lambda: nn.Conv1d(32, 32, 3)),
    scaled("Conv1d 256-256 k11", lambda: nn.Conv1d(256, 256, 11)),
    scaled("ConvTranspose1d 512-256 k16", lambda: nn.ConvTranspose1d(512, 256, 16)),
    scaled("Linear 1024-1024", lambda: nn.Linear(1024, 1024)),
    of(ORTHOGONAL, "Linear 64-64", lambda: nn.Linear(64, 64)),
    of(ORTHOGONAL, "Linear 512-512", lambda: nn.Linear(512, 512)),
    of(ORTHOGONAL, "Linear 512-128", lambda: nn.Linear(512, 128)),
    of(CONVOLUTION_NORM, "Conv2d 3-64 k3", lambda: nn.Conv2d(3, 64, 3, padding=1)),
    of(CONVOLUTION_NORM, "Conv2d 128-128 k3", lambda: nn.Conv2d(128, 128, 3, padding=1)),
)
MODELS = (
    Case("SN-DCGAN", lambda: SNDCGANDiscriminator(normalization=None), compiled=True),
    Case(
        "SN-ResNet cifar10",
        lambda: SNResNetDiscriminator.cifar10(normalization=None),
        compiled=True,
    ),
    Case("SN-ResNet imagenet", lambda: SNResNetDiscriminator.imagenet(normalization=None)),
    scaled("HiFi-GAN V1", HiFiGAN),
)
