"""The hinge loss for GANs (Lim and Ye, arXiv 1705.02894; Tran et al., arXiv 1702.08896)."""

from torch import Tensor
from torch.nn import functional


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))], a scalar; logits of any shape."""
    return functional.relu(1 - real_logits).mean() + functional.relu(1 + fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-E[D(fake)], a scalar."""
    return -fake_logits.mean()
