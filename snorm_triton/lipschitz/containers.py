"""What models are made of beside sequences: sums and concatenations of branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """``branch(x) + shortcut(x)``, the shortcut being ``x`` itself where there is none.

    Its Lipschitz bound is the sum of those of both.

    Args:
        branch: a module of one input.
        shortcut: another, whose output has the shape of the branch's.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton.lipschitz import Residual
        >>> block = Residual(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
        >>> block(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The sum, of the branch's output's shape."""
        total: Tensor = self.branch(x) + self.shortcut(x)
        return total


class Concatenation(nn.Module):
    """The outputs of several branches of one input, along the channels: dimension 1.

    Its Lipschitz bound is the root of the sum of the squares of theirs.

    Args:
        branches: modules of one input, whose outputs differ in their number of channels at most.

    Raises:
        ValueError: there is no branch.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton.lipschitz import Concatenation
        >>> Concatenation(nn.Linear(3, 2), nn.Identity())(torch.zeros(2, 3)).shape
        torch.Size([2, 5])
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        if not branches:
            raise ValueError("branches must hold at least one module, got none")
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, ...), C being the sum of the branches' channels."""
        return torch.cat([branch(x) for branch in self.branches], 1)
