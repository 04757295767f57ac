"""Both networks of a config, for images of a shape."""

import math
from dataclasses import replace

import torch
from torch import nn

from ..models import (
    SNDCGANDiscriminator,
    SNDCGANGenerator,
    SNResNetDiscriminator,
    SNResNetGenerator,
)
from .config import DEFAULT_STEPS, TrainingConfig
from .datasets import ImageSet
from .normalizations import NORMALIZATIONS

DCGAN_SIZE = 28


def fit_to_data(config: TrainingConfig, data: ImageSet) -> tuple[TrainingConfig, ImageSet]:
    """The config with all decided that depends on the data, and the images at its size.

    Raises ValueError where the model has no images of that size, or the batch is too large.
    """
    size = config.image_size
    if config.model == "sn-dcgan":
        if size not in (None, DCGAN_SIZE):
            raise ValueError(f"image_size: sn-dcgan makes images of {DCGAN_SIZE}, got {size}")
        size = DCGAN_SIZE
    if size is None:
        size = data.shape[1]
        if data.shape[1] != data.shape[2]:
            raise ValueError(
                f"image_size: the images are {data.shape[1]}x{data.shape[2]}, and not square"
            )
    if config.model == "sn-resnet":
        doublings(size)
    steps = config.steps
    if config.epochs is not None:
        steps = math.ceil(
            config.epochs * len(data) / (config.batch_size * config.discriminator_steps)
        )
    steps = DEFAULT_STEPS if steps is None else steps
    conditional, evaluate = config.conditional, config.evaluate
    config = replace(
        config,
        image_size=size,
        steps=steps,
        epochs=None,
        conditional=config.model == "sn-resnet" if conditional is None else conditional,
        evaluate=config.data == "digits" if evaluate is None else evaluate,
        record_every=config.record_every or max(1, steps // 80),
        device=config.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        threads=config.threads or torch.get_num_threads(),
    )
    return config, data.resized(size)


def doublings(size: int) -> int:
    """How often sn-resnet doubles its first resolution to reach `size`: down to 4, at least twice.

    As the paper's do: 3 for 32 and 48, 5 for 128. Raises ValueError where `size` is no multiple.
    """
    count = 2
    while size % 2 ** (count + 1) == 0 and size >= 4 * 2 ** (count + 1):
        count += 1
    if size % 2**count:
        raise ValueError(f"image_size: sn-resnet makes images of a multiple of 4, got {size}")
    return count


def build_generator(config: TrainingConfig, data: ImageSet) -> nn.Module:
    """The generator of a config that fits `data`, drawn from torch's global generator."""
    channels, size, _ = data.shape
    if config.model == "sn-dcgan":
        return SNDCGANGenerator(config.z_dim, config.generator_channels, channels)
    return SNResNetGenerator(
        doublings(size),
        config.generator_channels,
        channels,
        z_dim=config.z_dim,
        bottom_width=size // 2 ** doublings(size),
        num_classes=data.num_classes if config.conditional else None,
    )


def build_discriminator(config: TrainingConfig, data: ImageSet) -> nn.Module:
    """The discriminator, normalized; sn-resnet halves the resolution down to about 8."""
    channels, size, _ = data.shape
    normalization = NORMALIZATIONS[config.normalization]
    if config.model == "sn-dcgan":
        return SNDCGANDiscriminator(
            channels, config.discriminator_channels, normalization=normalization
        )
    halvings = max(2, round(math.log2(size / 8)))
    return SNResNetDiscriminator(
        halvings + 2,
        config.discriminator_channels,
        channels,
        num_downsamples=halvings,
        num_classes=data.num_classes if config.conditional else None,
        head_bias=False,
        normalization=normalization,
    )
