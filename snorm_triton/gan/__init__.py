"""A small SN-ResNet GAN trained on real digits: `python -m snorm_triton demo` runs it."""

from .losses import discriminator_loss, generator_loss
from .training import Trainer, TrainingConfig

__all__ = ["Trainer", "TrainingConfig", "discriminator_loss", "generator_loss"]
