"""The losses by hand, and what they are known for."""

import math

import pytest
import torch
from torch import nn

from snorm_triton.gan.losses import LOSSES, gradient_penalty

REAL, FAKE = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0], [0.25]])


def log_one_plus_exp(*values):
    return sum(math.log(1 + math.exp(value)) for value in values) / len(values)


CROSS_ENTROPY = log_one_plus_exp(-2, -0.5) + log_one_plus_exp(-3, 0.25)
BY_HAND = {
    "hinge": (0.25 + 0.625, 1.375),  # real: 0 and 0.5, fake: 0 and 1.25
    "bce": (CROSS_ENTROPY / 2, log_one_plus_exp(3, -0.25)),
    "non-saturating": (CROSS_ENTROPY, log_one_plus_exp(3, -0.25)),
    "wgan-gp": (-1.375 - 1.25, 1.375),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_by_hand(name):
    discriminator, generator = BY_HAND[name]
    assert LOSSES[name].discriminator(REAL, FAKE).item() == pytest.approx(discriminator)
    assert LOSSES[name].generator(FAKE).item() == pytest.approx(generator)


def test_bce_is_that_of_torch():
    criterion = nn.BCEWithLogitsLoss()
    of_real = criterion(REAL, torch.ones_like(REAL))
    of_fake = criterion(FAKE, torch.zeros_like(FAKE))
    torch.testing.assert_close(LOSSES["bce"].discriminator(REAL, FAKE), (of_real + of_fake) / 2)


def test_hinge_is_flat_beyond_the_margin():
    real, fake = (torch.tensor([value], requires_grad=True) for value in (1.5, -1.5))
    LOSSES["hinge"].discriminator(real, fake).backward()
    assert (real.grad.item(), fake.grad.item()) == (0, 0)


def test_penalty_of_a_linear_critic_is_that_of_its_slope():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        critic[1].weight.copy_(torch.tensor([[3.0, 0, 4, 0]]))  # of length 5
    real, fake, mix = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2), torch.rand(2, 1, 1, 1)
    penalty = gradient_penalty(critic, real, fake, mix)
    assert penalty.item() == pytest.approx(16)
    penalty.backward()  # of (|w| - 1)^2: 2 (5 - 1) w / 5
    torch.testing.assert_close(critic[1].weight.grad, torch.tensor([[4.8, 0, 6.4, 0]]))


def test_penalty_is_taken_between_the_images():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.square().sum(dim=(1, 2, 3))

    real, fake = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    gradient_penalty(critic, real, fake, torch.tensor([0.0, 0.25])[:, None, None, None])
    assert seen[0].flatten(1).unique(dim=1).flatten().tolist() == [0, 0.25]
