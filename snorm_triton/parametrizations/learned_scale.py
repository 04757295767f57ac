"""A scale that is learned with its weight; it starts where the weight is what it was without.

``scale`` of a :class:`.singular_vectors.SingularVectors`, a parameter of shape (1,).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..ops.dispatch import is_sharded
from ..ops.rescaling import Rescaling, divisor
from .options import LEARNED

SCALE = "scale"


def register(parametrization: Any, weight: Tensor) -> None:
    """Register it where it is asked for, of the weight's dtype, and of a shape that FSDP2 takes."""
    if parametrization.options.scale == LEARNED:
        one = torch.ones(1, dtype=weight.dtype.to_real(), device=weight.device)
        parametrization.register_parameter(SCALE, nn.Parameter(one))
        mark_new(parametrization)


def rescaling_of(parametrization: Any) -> Rescaling:
    """What becomes of a weight once its sigma is known."""
    known = parametrization.__dict__  # past Module's attribute lookup
    rescaling: Rescaling = known["options"].rescaling
    learned = known["_parameters"].get(SCALE)
    return rescaling if learned is None else rescaling._replace(learned=learned)


@torch.no_grad()
def start(parametrization: Any, sigma: Tensor) -> None:
    """Let what a weight is multiplied by be 1, unless the scale has been changed since it started.

    Not inside of a forward under FSDP2, which shows a copy of it: there it starts at 1.
    """
    if is_new(parametrization) and "_is_fsdp_managed_module" not in parametrization.__dict__:
        _local(parametrization).copy_(divisor(sigma, parametrization.options.rescaling.bound))
        mark_new(parametrization)


@torch.no_grad()
def reset(parametrization: Any) -> None:
    """Let it start anew."""
    if SCALE in parametrization._parameters:
        _local(parametrization).fill_(1)
        mark_new(parametrization)


def mark_new(parametrization: Any) -> None:
    """Note where the scale starts: by its value, for fused optimizers leave its version alone."""
    parametrization.__dict__["_started"] = _local(parametrization).clone()


def is_new(parametrization: Any) -> bool:
    """Whether there is one that is where it started; looks at its value."""
    started = parametrization.__dict__.get("_started")
    if started is None or SCALE not in parametrization._parameters:
        return False
    scale = _local(parametrization)
    return scale.is_meta or started.is_meta or torch.equal(scale, started.to(scale))


def _local(parametrization: Any) -> Tensor:
    scale: Tensor = parametrization._parameters[SCALE].detach()
    return cast(Any, scale).to_local() if is_sharded(scale) else scale
