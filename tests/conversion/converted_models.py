"""What torch normalizes a layer with, and what is asked of a model before and after conversion."""

import pytest
import torch
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as legacy_spectral_norm

THEIRS = [
    pytest.param(parametrizations.spectral_norm, id="parametrization"),
    pytest.param(legacy_spectral_norm, id="hook"),
]
theirs = pytest.mark.parametrize("norm", THEIRS)


def entries(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model, before):
    assert model.state_dict().keys() == before.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
