"""Noticing what is done in place to a normalized weight: it is done to a temporary, and lost."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

# A tensor's version as it was handed out, after a counter of what it is now: a tensor without
# elements that shares the tensor's own, which every operation in place advances. It holds neither
# memory nor a graph; a change through `.data` passes it by.
Version = tuple[Tensor, int]


def version_of(tensor: Tensor, last: Version | None) -> Version | None:
    """That of a plain tensor, None of one that has none; ``last`` is another, of its device."""
    if type(tensor) is not Tensor or torch.is_inference_mode_enabled():
        return None
    counter = tensor.detach()
    try:
        counter.data = tensor.new_empty(0) if last is None else last[0]
    except RuntimeError:  # inside a transform of torch.func
        return None
    return counter, counter._version


def warn(name: str, shape: torch.Size) -> None:
    """Say that a change of the parameter ``name`` was lost, and how it is made."""
    warnings.warn(
        f"{name!r} of shape {tuple(shape)} was changed in place where it was handed out, normalized"
        f": that is lost. Change the parameter before normalization instead, as in "
        f"nn.init.xavier_uniform_(module.parametrizations.{name}.original), or assign "
        f"module.{name} = tensor",
        UserWarning,
        stacklevel=6,  # the access: through the list's forward, Module.__call__ and the property
    )


def watches(module: nn.Module) -> bool:
    """Whether to notice changes of ``module``'s weights: not where its own forward makes them."""
    renormalizes = getattr(module, "max_norm", None) is not None  # Embedding and EmbeddingBag
    return not renormalizes and not isinstance(module, nn.RNNBase)  # cuDNN moves its weights
