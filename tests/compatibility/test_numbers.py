"""Weights of any size, and steps that go wrong."""

import pytest
import torch
from torch import nn


def is_finite(tensor):
    return bool(tensor.isfinite().all())


def norm(weight):
    return torch.linalg.matrix_norm(weight, 2).item()


@pytest.mark.promise("An all-zero weight", torch=("NaN", AssertionError))
def test_zero_weight(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    original = sn.original(layer)
    nn.init.zeros_(original)
    sn.weight(layer).sum().backward()
    assert is_finite(sn.weight(layer))
    assert is_finite(original.grad)
    nn.init.normal_(original).data.add_(3)
    for _ in range(20):
        weight = sn.weight(layer)
    assert norm(weight) == pytest.approx(1, abs=1e-3)


@pytest.mark.promise(
    "One non-finite step, and the weight restored after it",
    torch=("u and v stay NaN for good", AssertionError),
)
def test_non_finite_step(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    original = sn.original(layer)
    before = original.detach().clone()
    with torch.no_grad():
        original.fill_(torch.nan)
        assert sn.weight(layer).isnan().any()
        original.copy_(before)
    assert is_finite(sn.weight(layer))


@pytest.mark.promise(
    "Weights near 1e-30 and 1e30",
    hook=("infinite", AssertionError),
    parametrization=("NaN", AssertionError),
)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales(sn, scale):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    with torch.no_grad():
        sn.original(layer).mul_(scale)
    for _ in range(50):
        weight = sn.weight(layer)
    assert is_finite(weight)
    assert norm(weight) == pytest.approx(1, abs=1e-3)
