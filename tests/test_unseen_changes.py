"""A weight that is written through `.data`, of which no version tells."""

import pytest
import torch
from torch import nn

from snorm_triton import sigmas, spectral_norm
from snorm_triton.parametrizations import updates


def norm(weight):
    return torch.linalg.matrix_norm(weight, 2).item()


def step_by_hand(layer):
    layer(torch.ones(1, 6)).square().sum().backward()
    layer.weight_orig.data.sub_(layer.weight_orig.grad, alpha=0.1).mul_(3)


@torch.no_grad()
def mutate(layer):
    layer(torch.ones(1, 6))
    layer.weight_orig.data.add_(torch.randn(4, 6), alpha=0.1).mul_(3)


def scale(layer):
    layer(torch.ones(1, 6))
    layer.weight_orig.data.mul_(3)


@pytest.mark.parametrize("change", [step_by_hand, mutate, scale])
@pytest.mark.parametrize("policy", ["access", "update", "update, as on a GPU"])
def test_a_weight_written_through_data_is_normalized(policy, change, monkeypatch):
    if "GPU" in policy:  # whose memory nobody reads
        monkeypatch.setattr(updates, "fingerprint", lambda tensor: None)
    policy = policy.partition(",")[0]
    layer = spectral_norm(nn.Linear(6, 4), power_iter=policy, n_power_iterations=200)
    for _ in range(3):
        change(layer)
        sigma = torch.linalg.matrix_norm(layer.weight_orig, 2).item()
        # What is evaluated for u and v as they were is no more than the largest singular value.
        assert sigmas(layer)["weight"] <= 1.001 * sigma
        weight = layer.weight
        assert torch.allclose(weight * sigmas(layer)["weight"], layer.weight_orig)
        assert norm(weight) < 2.5


def test_accesses_before_one_backward_share_an_iteration_bit_for_bit_as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(updates, "fingerprint", lambda tensor: None)
    layer = spectral_norm(nn.Linear(6, 4), power_iter="update")
    real, fake = layer.weight, layer.weight
    assert torch.equal(real, fake)
    fake.square().sum().backward()
    torch.testing.assert_close(layer.weight, real)
