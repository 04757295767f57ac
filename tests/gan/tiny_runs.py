"""A run that takes milliseconds, and the images that it trains on."""

from pathlib import Path

import torch

from snorm_triton.gan import ImageSet, TrainingConfig, fit_to_data
from snorm_triton.gan.checkpoint import Checkpoint
from snorm_triton.gan.run import Run

TINY = {
    "steps": 6,
    "batch_size": 4,
    "z_dim": 4,
    "generator_channels": 4,
    "discriminator_channels": 4,
    "record_every": 1,
    "checkpoint_every": 2,
    "threads": 1,
    "device": "cpu",
    "evaluate": False,
}
CLASSES = 3


def tiny_images(size: int = 8, channels: int = 1, count: int = 10) -> ImageSet:
    random = torch.Generator().manual_seed(5)
    shape = (count, channels, size, size)
    images = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % CLASSES, CLASSES)


def tiny_run(folder: Path, checkpoint: Checkpoint | None = None, **options: object) -> Run:
    config, data = fit_to_data(TrainingConfig(**TINY | options), tiny_images())
    return Run(config, data, folder, checkpoint=checkpoint)
