"""The largest singular value of each layer, measured by SVD and not by power iteration."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

RAW_WEIGHT = "parametrizations.weight.original"


class TopSingularValues(NamedTuple):
    """Of the weight that the optimizer sees in a layer, and of the weight in use."""

    raw: float
    normalized: float


@torch.no_grad()
def top_singular_values(model: nn.Module) -> dict[str, TopSingularValues]:
    """Measure every Conv2d, Linear and Embedding of `model`, each weight read as (out, in * k * k).

    The model is in eval mode meanwhile, so that looking at a weight does not iterate. Where a layer
    is not normalized the two values are the same.
    """
    was_training = model.training
    model.eval()
    measured = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            normalized = parametrize.is_parametrized(layer, "weight")
            raw = layer.get_parameter(RAW_WEIGHT if normalized else "weight")
            measured[name] = TopSingularValues(_top(raw), _top(layer.weight))
    model.train(was_training)
    return measured


def _top(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.flatten(1).double(), ord=2))
