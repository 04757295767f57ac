"""The weight of a module, whoever normalizes it, without an iteration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ..ops.convolution_geometry import CONVOLUTIONS, TRANSPOSED, ConvolutionModule
from ..ops.dispatch import is_sharded
from ..parametrizations.base import evaluating
from ..torch_internals.parametrize import LegacySpectralNorm, LegacyWeightNorm


def read_weight(module: ConvolutionModule | nn.Linear) -> Tensor:
    """``module.weight`` as evaluation has it, at least float32; differentiable, writes nothing.

    Raises:
        TypeError: ``module`` is neither a convolution nor a Linear.
        ValueError: the weight waits for its first input, or is complex, or a DTensor.
    """
    name = type(module).__name__
    if not isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)):
        raise TypeError(f"conv must be a convolution of torch or a Linear, got {name}")
    weight: Tensor = _weight(module)
    if is_lazy(weight):
        raise ValueError(f"conv must have seen its first input, {name} has not")
    if weight.is_complex():
        raise ValueError(f"weight must be real, that of {name} is {weight.dtype}")
    if is_sharded(weight):
        raise ValueError(f"weight must be a plain tensor, that of {name} is sharded: gather it")
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _weight(module: Any) -> Tensor:
    weight: Tensor
    for hook in module._forward_pre_hooks.values():
        # The attribute is what the last forward left.
        if isinstance(hook, LegacySpectralNorm) and hook.name == "weight":
            weight = hook.compute_weight(module, do_power_iteration=False)
            return weight
        if isinstance(hook, LegacyWeightNorm) and hook.name == "weight":
            weight = hook.compute_weight(module)
            return weight
    if not is_parametrized(module, "weight"):
        weight = module.weight
        return weight
    # An access to torch's in training iterates.
    all_lists: Any = module.parametrizations
    training = [each for each in all_lists["weight"].modules() if each.training]
    try:
        for each in training:
            each.training = False
        with evaluating():
            weight = module.weight
            return weight
    finally:
        for each in training:
            each.training = True
