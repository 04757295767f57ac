"""Copies and pickles of normalized modules stand on their own."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from snorm_triton import remove_spectral_norm, spectral_norm


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


duplicates = pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_a_file]
)


@duplicates
def test_a_copy_computes_the_same_and_shares_nothing(layer_kind, duplicate):
    layer = spectral_norm(layer_kind.make(), layer_kind.parameter)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    twin = duplicate(layer)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(twin.state_dict()[key], value)
        assert twin.state_dict()[key].data_ptr() != value.data_ptr()
    inputs = layer_kind.inputs()
    assert torch.equal(layer_kind.run(layer, inputs), layer_kind.run(twin, inputs))
    assert type(twin) is not type(layer)
    assert type(twin).__name__ == type(layer).__name__


@duplicates
def test_removal_from_a_copy_leaves_the_original(duplicate):
    layer = spectral_norm(nn.Linear(4, 3)).eval()
    expected = layer.weight.detach().clone()
    twin = remove_spectral_norm(duplicate(layer))
    assert type(twin) is nn.Linear
    assert torch.equal(twin.weight, expected)
    assert torch.equal(layer.weight, expected)


@duplicates
def test_cached_gives_a_copy_its_own_weight(duplicate):
    layer = spectral_norm(nn.Linear(4, 3))
    twin = duplicate(layer)
    with torch.no_grad():
        twin.parametrizations.weight.original.normal_()
    with parametrize.cached():
        assert not torch.equal(layer.weight, twin.weight)
        assert layer.weight is layer.weight


def test_a_copy_of_a_copy():
    layer = spectral_norm(spectral_norm(nn.Linear(4, 3)), "bias")
    twin = pickle.loads(pickle.dumps(copy.deepcopy(copy.deepcopy(layer)).eval()))
    layer.eval()
    assert torch.equal(layer.weight, twin.weight)
    assert torch.equal(layer.bias, twin.bias)


def test_a_model_that_shares_a_layer_keeps_sharing_it_when_copied():
    layer = spectral_norm(nn.Linear(4, 4))
    model = copy.deepcopy(nn.Sequential(layer, nn.ReLU(), layer))
    assert model[0] is model[2]


@pytest.mark.parametrize("power_iter", ["access", "update"])
def test_tensors_that_are_swapped(power_iter):
    """As torch does it that way where it is asked to: none may be weakly referred to."""
    layer, other = (spectral_norm(nn.Linear(5, 4), power_iter=power_iter) for _ in range(2))
    assert layer.weight is not None
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer.eval().weight, other.eval().weight)
        assert layer.double().weight.dtype == torch.float64
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
