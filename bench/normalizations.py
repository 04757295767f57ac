"""Ways to normalize every layer of a model, in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations

from snorm_triton import (
    apply_orthogonal,
    apply_spectral_norm,
    apply_weight_norm,
    orthogonal,
    spectral_norm,
    weight_norm,
)
from snorm_triton.selection import NORMALIZED_TYPES

OURS, PER_LAYER, FOREACH = "ours", "ours, per layer", "ours, foreach"
NEWTON_SCHULZ = "ours, newton_schulz"  # another map: orthogonal matrices that differ from torch's
NEW, LEGACY = "torch new", "torch legacy"
SPECTRAL_NORM, WEIGHT_NORM = "spectral norm", "weight norm"
ORTHOGONAL, CONVOLUTION_NORM = "orthogonal", "convolution's norm"
HAVE_KERNELS = (SPECTRAL_NORM, WEIGHT_NORM)
IMAGE = 16  # elements of an image's side, of which the norm of a convolution is taken


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that every one of the normalizations takes, in the order of the model."""
    return [module for module in model.modules() if isinstance(module, NORMALIZED_TYPES)]


def each_layer(normalization: Callable[[nn.Module], nn.Module], model: nn.Module) -> None:
    for layer in layers_of(model):
        normalization(layer)


NORMALIZATIONS: dict[str, Callable[[nn.Module], object]] = {
    OURS: partial(each_layer, spectral_norm),
    PER_LAYER: partial(apply_spectral_norm, foreach=False),
    FOREACH: partial(apply_spectral_norm, foreach=True),
    NEW: partial(each_layer, parametrizations.spectral_norm),
    LEGACY: partial(each_layer, utils.spectral_norm),
}
WEIGHT_NORMS: dict[str, Callable[[nn.Module], object]] = {
    OURS: partial(each_layer, weight_norm),
    PER_LAYER: partial(apply_weight_norm, foreach=False),
    FOREACH: partial(apply_weight_norm, foreach=True),
    NEW: partial(each_layer, parametrizations.weight_norm),
    LEGACY: partial(each_layer, utils.weight_norm),
}
ORTHOGONALS: dict[str, Callable[[nn.Module], object]] = {
    OURS: partial(each_layer, orthogonal),
    NEWTON_SCHULZ: partial(each_layer, partial(orthogonal, orthogonal_map="newton_schulz")),
    PER_LAYER: partial(apply_orthogonal, foreach=False),
    FOREACH: partial(apply_orthogonal, foreach=True),
    NEW: partial(each_layer, parametrizations.orthogonal),
}


def of_convolution(layer: nn.Module) -> nn.Module:
    shape = (layer.in_channels, *[IMAGE] * len(layer.kernel_size))
    return spectral_norm(layer, operator="convolution", input_shape=shape)


# torch has none.
CONVOLUTION_NORMS: dict[str, Callable[[nn.Module], object]] = {
    OURS: partial(each_layer, of_convolution),
    PER_LAYER: partial(each_layer, of_convolution),
}
BY_CONSTRAINT = {
    SPECTRAL_NORM: NORMALIZATIONS,
    WEIGHT_NORM: WEIGHT_NORMS,
    ORTHOGONAL: ORTHOGONALS,
    CONVOLUTION_NORM: CONVOLUTION_NORMS,
}


def those_of(constraint: str, *names: str) -> list[str]:
    """Those of ``names`` that the constraint has."""
    return [name for name in names if name in BY_CONSTRAINT[constraint]]


def raw_weights(model: nn.Module) -> list[Tensor]:
    """The parameters behind the normalized weights, however they are normalized."""
    before = ("original", "original0", "original1")  # that of a spectral norm, g and v
    endings = (*(f".parametrizations.weight.{name}" for name in before), "_orig", "_g", "_v")
    return [weight for name, weight in model.named_parameters() if name.endswith(endings)]
