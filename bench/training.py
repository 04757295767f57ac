"""A whole training step of the SN-ResNet GAN, as the demo trains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bench.normalizations import FOREACH, LEGACY, NEW, NORMALIZATIONS, PER_LAYER
from bench.variants import Run
from snorm_triton.gan.training import Trainer, TrainingConfig

NONE = "no normalization"


@dataclass(frozen=True)
class TrainingCase:
    name: str
    image_size: int
    config: TrainingConfig
    # The wide discriminator takes seconds a step on a CPU, where normalization vanishes beside it.
    gpu_only: bool = False

    def trainer(self, device: torch.device) -> Trainer:
        """On noise: what the images show changes nothing in the time of a step."""
        torch.manual_seed(0)
        images = torch.rand(1024, 1, self.image_size, self.image_size, device=device) * 2 - 1
        labels = torch.arange(1024, device=device) % 10
        return Trainer(images, labels, self.config, normalization=None)


TRAININGS = (
    TrainingCase("the demo: 8x8 images, 32 channels", 8, TrainingConfig()),
    TrainingCase(
        "32x32 images, 128 channels",
        32,
        TrainingConfig(channels=128, bottom_width=4, z_dim=128),
        gpu_only=True,
    ),
)


def training_step(case: TrainingCase, device: torch.device, normalization: str) -> Run:
    """An update of the discriminator, then one of the generator."""
    trainer = case.trainer(device)
    if normalization != NONE:
        NORMALIZATIONS[normalization](trainer.discriminator)
    return trainer.step


def training_builders(case: TrainingCase, device: torch.device) -> dict[str, Callable[[], Run]]:
    names = (NONE, FOREACH, PER_LAYER, NEW, LEGACY)
    return {name: partial(training_step, case, device, name) for name in names}
