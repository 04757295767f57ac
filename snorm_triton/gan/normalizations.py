"""What can be done to the discriminator's weights, by name."""

from collections.abc import Mapping

from torch import nn
from torch.nn.utils import parametrizations

from ..api.spectral_norm import spectral_norm
from ..api.weight_norm import weight_norm
from ..models.arguments import Normalization

NORMALIZATIONS: Mapping[str, Normalization | None] = {
    "ours": spectral_norm,
    "torch": parametrizations.spectral_norm,
    "hook": nn.utils.spectral_norm,
    "weight-norm": weight_norm,
    "none": None,
}
"""Ours, torch's parametrization and hook, weight normalization, which is ours, and none at all."""
