"""Following sigma through a training run."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from .api import sigmas


class Writer(Protocol):
    """What can take a scalar: ``torch.utils.tensorboard.SummaryWriter`` and its like."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None) -> Any:
        """Take ``scalar_value`` for ``tag`` at ``global_step``."""


def log_sigmas(
    writer: Writer, model: nn.Module, step: int | None = None, prefix: str = "sigma"
) -> None:
    """Write the last sigma of each normalized parameter of a model, as :func:`sigmas` gives them.

    One read of the device for all of them.

    Args:
        writer: takes ``add_scalar(tag, value, step)``.
        model: any module.
        step: the step to write them for.
        prefix: the tags are ``prefix/name`` with the parameter's qualified name.

    Example:
        >>> class Printer:
        ...     def add_scalar(self, tag, scalar_value, global_step):
        ...         print(tag, round(scalar_value, 3), global_step)
        >>> layer = spectral_norm(nn.Linear(2, 2, bias=False))
        >>> layer.weight = torch.diag(torch.tensor([3.0, 1.0]))
        >>> log_sigmas(Printer(), refresh_spectral_norm(layer), step=7)
        sigma/weight 3.0 7
    """
    found = sigmas(model)
    if not found:
        return
    first, *_ = found.values()
    values = torch.stack([sigma.to(first.device, torch.float32) for sigma in found.values()])
    for name, value in zip(found, values.tolist(), strict=True):
        writer.add_scalar(f"{prefix}/{name}", value, step)
