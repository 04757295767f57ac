"""Ways to normalize every layer of a model, in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.utils import spectral_norm as torch_legacy
from torch.nn.utils.parametrizations import spectral_norm as torch_new

from snorm_triton import apply_spectral_norm, spectral_norm
from snorm_triton.selection import NORMALIZED_TYPES

OURS, PER_LAYER, FOREACH = "ours", "ours, per layer", "ours, foreach"
NEW, LEGACY = "torch new", "torch legacy"


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
    NEW: partial(each_layer, torch_new),
    LEGACY: partial(each_layer, torch_legacy),
}


def raw_weights(model: nn.Module) -> list[Tensor]:
    """The parameters behind the normalized weights, however they are normalized."""
    endings = (".parametrizations.weight.original", ".weight_orig")
    return [weight for name, weight in model.named_parameters() if name.endswith(endings)]
