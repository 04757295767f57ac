"""Models normalized by torch become ours: what they share, stack and copy stays as it was."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as legacy_spectral_norm
from torch.nn.utils.parametrizations import _SpectralNorm

from converted_models import assert_unchanged, entries, theirs
from snorm_triton import (
    SpectralNormParametrization,
    apply_spectral_norm,
    convert_spectral_norm,
    sigmas,
    spectral_norm,
)


@theirs
def test_several_parameters_of_a_layer_and_of_a_nested_model(norm):
    model = nn.ModuleDict({"a": norm(norm(nn.Linear(3, 2)), "bias"), "b": nn.Sequential(nn.ReLU())})
    model["b"].append(norm(nn.Bilinear(2, 3, 4)))
    convert_spectral_norm(model)
    assert list(sigmas(model)) == ["a.weight", "a.bias", "b.1.weight"]
    expected = nn.functional.normalize(model["a"].parametrizations.bias.original, dim=0)
    assert torch.allclose(model.eval()["a"].bias, expected)


@theirs
def test_tied_parameters_and_layers_stay_tied(norm):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(norm(first), norm(second), first)
    convert_spectral_norm(model)
    assert model[0] is model[2]
    original = model[0].parametrizations.weight.original
    assert model[1].parametrizations.weight.original is original
    assert len(list(model.parameters())) == 3


def test_a_parametrization_in_two_places_stays_in_both():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    shared = _SpectralNorm(first.weight)
    for layer in (first, second):
        parametrize.register_parametrization(layer, "weight", shared)
    convert_spectral_norm(nn.Sequential(first, second))
    assert first.parametrizations.weight[0] is second.parametrizations.weight[0]


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


@pytest.mark.parametrize("first", [Doubled, None])
@pytest.mark.parametrize("last", [Doubled, None])
def test_others_on_the_parameter_stay_in_their_places(first, last, relative_error):
    layer = nn.Linear(4, 3)
    for norm in (first, parametrizations.spectral_norm, last):
        if norm is parametrizations.spectral_norm:
            norm(layer)
        elif norm is not None:
            parametrize.register_parametrization(layer, "weight", norm())
    kinds = [type(p) for p in layer.parametrizations.weight]
    expected = layer.eval().weight
    convert_spectral_norm(layer)
    ours = [SpectralNormParametrization if kind is _SpectralNorm else kind for kind in kinds]
    assert [type(p) for p in layer.parametrizations.weight] == ours
    assert relative_error(layer.weight, expected) < 1e-6
    convert_spectral_norm(layer, to="torch")
    assert [type(p) for p in layer.parametrizations.weight] == kinds
    assert relative_error(layer.weight, expected) < 1e-6


def test_a_stack(relative_error):
    layer = parametrizations.spectral_norm(parametrizations.spectral_norm(nn.Linear(4, 3)))
    expected = layer.eval().weight
    convert_spectral_norm(layer)
    assert list(sigmas(layer)) == ["weight.0", "weight.1"]
    assert relative_error(layer.weight, expected) < 1e-6


def test_on_top_of_weight_norm(relative_error):
    layer = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(4, 3)))
    before = entries(layer)
    convert_spectral_norm(layer)
    assert_unchanged(layer, before)
    assert layer.training
    assert all(module.training for module in layer.modules())
    expected = convert_spectral_norm(copy.deepcopy(layer), to="torch").eval().weight
    assert relative_error(layer.eval().weight, expected) < 1e-6


@theirs
def test_a_deepcopy_and_its_original_are_converted_apart(norm):
    original = norm(nn.Linear(4, 3))
    norm(original, "bias")
    inputs = torch.randn(2, 4)
    with torch.no_grad():
        original(inputs)
        expected = original.eval()(inputs)
    twin = copy.deepcopy(original)
    convert_spectral_norm(twin)
    assert torch.equal(original(inputs), expected)
    assert len(twin._load_state_dict_pre_hooks) == 1
    assert type(twin) is not type(original)
    again = pickle.loads(pickle.dumps(copy.deepcopy(twin)))
    convert_spectral_norm(original)
    with parametrize.cached(), torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_()
        assert not torch.equal(twin.weight, original.weight)
    assert torch.equal(again.weight, original.weight)
    parametrize.remove_parametrizations(twin, "weight")
    parametrize.remove_parametrizations(twin, "bias")
    assert type(twin) is nn.Linear
    assert original.bias.shape == (3,)


@theirs
def test_a_model_that_was_just_trained_can_be_copied_once_converted(norm):
    model = nn.Sequential(norm(nn.Linear(4, 3)))
    model(torch.randn(2, 4)).sum().backward()
    twin = copy.deepcopy(convert_spectral_norm(model))
    assert torch.equal(twin.eval()[0].weight, model.eval()[0].weight)


def test_what_torch_shares_a_class_with_is_left_whole():
    original = parametrizations.spectral_norm(nn.Linear(4, 3))
    legacy_spectral_norm(original, "bias")
    with torch.no_grad():
        original(torch.randn(2, 4))
    twin = copy.deepcopy(original)
    convert_spectral_norm(twin)
    inputs = torch.randn(2, 4)
    assert (original.eval()(inputs) - twin.eval()(inputs)).norm() < 1e-4
    assert hasattr(original, "bias_orig")


def test_what_stands_as_it_should_is_left_alone():
    ours = spectral_norm(nn.Linear(3, 3))
    lazy = spectral_norm(nn.LazyLinear(3))
    model = nn.Sequential(ours, parametrizations.spectral_norm(nn.Linear(3, 3)), lazy)
    p = ours.parametrizations.weight[0]
    convert_spectral_norm(convert_spectral_norm(model))
    assert ours.parametrizations.weight[0] is p
    model(torch.ones(1, 3))
    assert list(sigmas(model)) == ["0.weight", "1.weight", "2.weight"]


def test_foreach_ends_with_ours():
    model = apply_spectral_norm(nn.Sequential(nn.Linear(3, 3)), foreach=True)
    model(torch.ones(1, 3))
    convert_spectral_norm(model, to="torch")
    assert not model._forward_pre_hooks
    model(torch.ones(1, 3))
    apply_spectral_norm(convert_spectral_norm(model), foreach=True)
    model(torch.ones(1, 3)).sum().backward()
    assert not sigmas(model)["0.weight"].isnan()
