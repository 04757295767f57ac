"""A whole training step of the SN-ResNet GAN, as the demo trains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.normalizations import FOREACH, LEGACY, NEW, NORMALIZATIONS, PER_LAYER
from bench.variants import Run
from snorm_triton.gan import ImageSet, Trainer, TrainingConfig, fit_to_data

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
        size = (1024, 1, self.image_size, self.image_size)
        images = torch.randint(256, size, dtype=torch.uint8)
        data = ImageSet(images, torch.arange(1024) % 10, num_classes=10)
        config = replace(self.config, normalization="none", device=str(device))
        return Trainer(*fit_to_data(config, data))


TRAININGS = (
    TrainingCase("the demo: 8x8 images, 32 channels", 8, TrainingConfig()),
    TrainingCase(
        "32x32 images, 128 channels",
        32,
        TrainingConfig(generator_channels=128, discriminator_channels=128, z_dim=128),
        gpu_only=True,
    ),
)


def training_step(case: TrainingCase, device: torch.device, normalization: str) -> Run:
    """An update of the discriminator, then one of the generator."""
    trainer = case.trainer(device)
    if normalization != NONE:
        NORMALIZATIONS[normalization](trainer.discriminator.network)
    return trainer.advance


def training_builders(case: TrainingCase, device: torch.device) -> dict[str, Callable[[], Run]]:
    names = (NONE, FOREACH, PER_LAYER, NEW, LEGACY)
    return {name: partial(training_step, case, device, name) for name in names}
