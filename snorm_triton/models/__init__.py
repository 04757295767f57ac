"""Discriminators whose every weight is spectrally normalized, and the generators they train."""

from .sn_dcgan import SNDCGANDiscriminator, SNDCGANGenerator
from .sn_resnet import SNResNetDiscriminator, SNResNetGenerator

__all__ = [
    "SNDCGANDiscriminator",
    "SNDCGANGenerator",
    "SNResNetDiscriminator",
    "SNResNetGenerator",
]
