"""A layer normalized by torch becomes ours where it stands, and back."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as legacy_spectral_norm
from torch.nn.utils.parametrizations import _SpectralNorm

from converted_models import theirs
from saved_states import trained
from snorm_triton import SpectralNormParametrization, convert_spectral_norm, spectral_norm


def vectors(layer, name="weight"):
    if hasattr(layer, f"{name}_u"):
        return getattr(layer, f"{name}_u"), getattr(layer, f"{name}_v")
    p = layer.parametrizations[name][0]
    return p._u, p._v


@theirs
def test_nothing_is_drawn_nothing_iterates_and_evaluation_is_the_same(
    norm, layer_kind, relative_error
):
    layer = trained(norm, layer_kind, n_power_iterations=2, eps=1e-6)
    name = layer_kind.parameter
    parameters = set(layer.parameters())
    u, v = (vector.clone() for vector in vectors(layer, name))
    inputs = layer_kind.inputs()
    with torch.no_grad():
        expected = layer_kind.run(layer.eval(), inputs)
    layer.train()
    state = torch.get_rng_state()
    assert convert_spectral_norm(layer, backend="torch") is layer
    assert torch.equal(torch.get_rng_state(), state)
    (p,) = layer.parametrizations[name]
    assert type(p) is SpectralNormParametrization
    assert (p.n_power_iterations, p.eps, p.options.backend) == (2, 1e-6, "torch")
    assert p.training
    assert torch.equal(p._u, u)
    assert torch.equal(p._v, v)
    assert p.sigma.isnan()
    assert set(layer.parameters()) == parameters
    with torch.no_grad():
        assert relative_error(layer_kind.run(layer.eval(), inputs), expected) < 1e-6
    assert layer.state_dict().keys() == spectral_norm(layer_kind.make(), name).state_dict().keys()


def test_training_goes_on_as_it_would_have(layer_kind, relative_error):
    reference = trained(parametrizations.spectral_norm, layer_kind)
    layer = parametrizations.spectral_norm(layer_kind.make(), layer_kind.parameter)
    layer.load_state_dict(reference.state_dict())
    convert_spectral_norm(layer)
    for _ in range(4):
        inputs = layer_kind.inputs()
        expected = layer_kind.run(reference, inputs)
        output = layer_kind.run(layer, inputs)
        assert relative_error(output, expected) < 1e-5
        for each in (output, expected):
            each.square().sum().backward()
        for parameter, other in zip(layer.parameters(), reference.parameters(), strict=True):
            if other.grad is not None:
                assert relative_error(parameter.grad, other.grad) < 1e-4


@theirs
def test_there_and_back(norm, layer_kind, relative_error):
    layer = trained(norm, layer_kind, n_power_iterations=3)
    name = layer_kind.parameter
    u, v = (vector.clone() for vector in vectors(layer, name))
    inputs = layer_kind.inputs()
    with torch.no_grad():
        expected = layer_kind.run(layer.eval(), inputs)
    state = torch.get_rng_state()
    convert_spectral_norm(convert_spectral_norm(layer), to="torch")
    assert torch.equal(torch.get_rng_state(), state)
    (p,) = layer.parametrizations[name]
    assert type(p) is _SpectralNorm
    assert type(layer.parametrizations[name]) is parametrize.ParametrizationList
    assert p.n_power_iterations == 3
    assert not p.training
    assert torch.equal(p._u, u)
    assert torch.equal(p._v, v)
    assert not [h for h in layer._load_state_dict_pre_hooks.values() if hasattr(h, "hook")]
    with torch.no_grad():
        assert relative_error(layer_kind.run(layer, inputs), expected) < 1e-6
    layer_kind.run(layer.train(), inputs).square().sum().backward()


def test_the_hook_becomes_torchs_parametrization():
    layer = legacy_spectral_norm(nn.ConvTranspose2d(3, 4, 2))
    weight = layer.weight_orig
    convert_spectral_norm(layer, to="torch")
    assert type(layer.parametrizations.weight[0]) is _SpectralNorm
    assert layer.parametrizations.weight.original is weight
    assert layer.parametrizations.weight[0].dim == 1


@theirs
def test_an_optimizer_goes_on(norm):
    def step(model, optimizer):
        torch.manual_seed(1)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()

    model = nn.Sequential(norm(nn.Linear(4, 4)), nn.ReLU(), norm(nn.Linear(4, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimizer)
    steps = {id(p): optimizer.state[p]["step"].item() for p in model.parameters()}
    convert_spectral_norm(model)
    step(model, optimizer)
    for parameter in model.parameters():
        assert optimizer.state[parameter]["step"].item() == steps[id(parameter)] + 1


@theirs
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(norm, training):
    model = nn.Sequential(norm(nn.Linear(3, 3)), norm(nn.Linear(3, 3)))
    model[0].train(training)
    model[1].eval()
    convert_spectral_norm(model)
    assert model[0].parametrizations.weight[0].training is training
    assert not model[1].parametrizations.weight[0].training


def test_the_hook_leaves_nothing_behind():
    plain = nn.Linear(3, 2)
    layer = convert_spectral_norm(legacy_spectral_norm(nn.Linear(3, 2)))
    reference = spectral_norm(plain)
    assert layer.__dict__.keys() == reference.__dict__.keys()
    for hooks in ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
        assert len(getattr(layer, hooks)) == len(getattr(reference, hooks))
    assert layer.state_dict()._metadata == reference.state_dict()._metadata
    assert not layer.parametrizations.weight.unsafe
    layer.load_state_dict(legacy_spectral_norm(nn.Linear(3, 2)).state_dict(), strict=True)


def test_half_precision():
    layer = parametrizations.spectral_norm(nn.Linear(4, 3)).half()
    convert_spectral_norm(layer)
    p = layer.parametrizations.weight[0]
    assert p._u.dtype == torch.float32
    assert layer.weight.dtype == torch.float16
    convert_spectral_norm(layer, to="torch")
    assert layer.parametrizations.weight[0]._u.dtype == torch.float16
    assert layer(torch.ones(1, 4, dtype=torch.float16)).dtype == torch.float16


def test_buffers_stay_where_others_hold_them():
    layer = parametrizations.spectral_norm(nn.Linear(4, 3))
    u = layer.parametrizations.weight[0]._u
    convert_spectral_norm(layer)
    assert layer.parametrizations.weight[0]._u is u
