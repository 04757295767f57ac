"""The largest singular value of each layer, measured by SVD and not by power iteration."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SPECTRAL_ORIGINALS = ("parametrizations.weight.original", "weight_orig")


class TopSingularValues(NamedTuple):
    """Of the weight that the optimizer sees in a layer, and of the weight in use.

    Where spectral normalization is the only difference, `raw / normalized` is the sigma that its
    power iteration has come to.
    """

    raw: float
    normalized: float


@torch.no_grad()
def top_singular_values(model: nn.Module) -> dict[str, TopSingularValues]:
    """Measure every Conv2d, Linear and Embedding of `model`, each weight read as (out, in * k * k).

    The model is in eval mode meanwhile, so that looking at a weight does not iterate. Where a layer
    has no spectral norm the two values are the same.
    """
    was_training = model.training
    model.eval()
    measured = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            in_use = _weight_in_use(layer)
            state = dict(layer.named_parameters())
            raw = next((state[key] for key in SPECTRAL_ORIGINALS if key in state), in_use)
            measured[name] = TopSingularValues(_top(raw), _top(in_use))
    model.train(was_training)
    return measured


def _weight_in_use(layer: Any) -> Tensor:
    if not parametrize.is_parametrized(layer, "weight"):
        for hook in layer._forward_pre_hooks.values():
            hook(layer, ())  # torch's hook leaves in `weight` what the last forward took
    weight: Tensor = layer.weight
    return weight


def _top(weight: Tensor) -> float:
    """NaN for a weight that is not finite, as one of a run that has diverged."""
    matrix = weight.flatten(1).double()
    if not bool(matrix.isfinite().all()):
        return math.nan
    return float(torch.linalg.matrix_norm(matrix, ord=2))
