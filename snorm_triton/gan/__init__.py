"""Training of GANs: `python -m snorm_triton train` and `demo` run it."""

from .config import TrainingConfig
from .datasets import ImageSet
from .networks import fit_to_data
from .trainer import Trainer

__all__ = ["ImageSet", "Trainer", "TrainingConfig", "fit_to_data"]
