"""The losses of GANs by name, of logits of any shape; means are over all logits."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus


class Loss(NamedTuple):
    """`discriminator(real_logits, fake_logits)` and `generator(fake_logits)`, scalars.

    Where it is `penalized`, the discriminator's is to have a `gradient_penalty` added.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    penalized: bool = False


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return relu(1 - real).mean() + relu(1 + fake).mean()


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """-E[log D(real)] - E[log(1 - D(fake))], where D is the sigmoid of the logit."""
    return softplus(-real).mean() + softplus(fake).mean()


def _half_cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    return _cross_entropy(real, fake) / 2


def _wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def _minus_log(fake: Tensor) -> Tensor:
    """-E[log D(fake)]."""
    return softplus(-fake).mean()


def _minus_logit(fake: Tensor) -> Tensor:
    return -fake.mean()


LOSSES: Mapping[str, Loss] = {
    "hinge": Loss(_hinge, _minus_logit),
    "bce": Loss(_half_cross_entropy, _minus_log),
    "non-saturating": Loss(_cross_entropy, _minus_log),
    "wgan-gp": Loss(_wasserstein, _minus_logit, penalized=True),
}
"""By name, with their sources:

- hinge: Lim and Ye, arXiv 1705.02894; Tran et al., arXiv 1702.08896.
- bce: binary cross-entropy with logits, its mean over real and fake, as the course notebook has it.
- non-saturating: Goodfellow et al., arXiv 1406.2661; the same, its sum.
- wgan-gp: Gulrajani et al., arXiv 1704.00028.
"""


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """E[(|grad D(x)| - 1)^2] at x = fake + mix (real - fake), a scalar to differentiate again.

    `real` and `fake` are (N, C, H, W), `mix` (N, 1, 1, 1) in [0, 1). Gulrajani et al.,
    arXiv 1704.00028.
    """
    between = torch.lerp(fake, real, mix).requires_grad_()
    logits = discriminator(between).sum()
    (gradient,) = torch.autograd.grad(logits, between, create_graph=True)
    lengths: Tensor = gradient.flatten(1).norm(dim=1)
    return (lengths - 1).square().mean()
