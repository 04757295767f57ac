"""Lazy modules: the first output is normalized, and everything done before it still holds."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from snorm_triton import (
    apply_spectral_norm,
    backend_report,
    remove_spectral_norm,
    sigmas,
    spectral_norm,
)
from snorm_triton.modules.loading import before_load
from snorm_triton.reference import largest_singular_value


def dim_of(layer):
    return layer.parametrizations.weight[0].dim


def materialized(lazy_kind):
    layer = spectral_norm(lazy_kind.make())
    layer(*lazy_kind.inputs())
    return layer


def test_the_first_output_is_normalized(lazy_kind):
    inputs = lazy_kind.inputs()
    layer = spectral_norm(lazy_kind.make())
    assert is_lazy(layer.weight)
    assert sigmas(layer)["weight"].isnan()
    (report,) = backend_report(layer)
    assert report.reason == "it waits for its module's first forward"
    output = layer(*inputs)
    original = layer.parametrizations.weight.original
    raw = largest_singular_value(original, dim_of(layer))
    assert sigmas(layer)["weight"].item() == pytest.approx(raw.item(), rel=0.05)
    reapplied = layer.eval()(*inputs)
    assert (output - reapplied).norm() < 1e-5 * output.norm()


def test_it_becomes_the_layer_it_stands_for(lazy_kind):
    layer = materialized(lazy_kind)
    assert type(layer).__name__ == "Parametrized" + lazy_kind.name.removeprefix("Lazy")
    assert not layer._forward_pre_hooks
    (hook,) = layer._load_state_dict_pre_hooks.values()
    assert hook.hook is before_load


def test_a_normalized_state_dict_loads_before_the_first_forward(lazy_kind):
    inputs = lazy_kind.inputs()
    trained = materialized(lazy_kind)
    layer = spectral_norm(lazy_kind.make())
    layer.load_state_dict(trained.state_dict(), strict=True)
    for key, value in trained.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)
    trained.eval(), layer.eval()
    assert torch.equal(layer(*inputs), trained(*inputs))
    assert type(layer).__name__ == type(trained).__name__


@pytest.mark.parametrize("names", [["weight", "weight"], ["weight", "bias"], ["bias"]])
def test_several_registrations_load_before_the_first_forward(lazy_kind, names):
    inputs = lazy_kind.inputs()
    trained, layer = lazy_kind.make(), lazy_kind.make()
    for name in names:
        spectral_norm(trained, name)
        spectral_norm(layer, name)
    trained(*inputs)
    layer.register_load_state_dict_pre_hook(lambda *args: None)
    layer.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(layer(*inputs), trained(*inputs))
    assert not layer._forward_pre_hooks


def test_removal_between_load_and_first_forward(lazy_kind):
    inputs = lazy_kind.inputs()
    trained, layer = (spectral_norm(spectral_norm(lazy_kind.make()), "bias") for _ in range(2))
    trained(*inputs)
    layer.load_state_dict(trained.state_dict())
    remove_spectral_norm(layer, "bias")
    layer(*inputs)
    assert list(sigmas(layer)) == ["weight"]


def test_loading_does_not_cost_an_iteration(lazy_kind):
    """Trained and loaded go on alike: the first training forward after a load iterates once."""
    inputs = lazy_kind.inputs()
    trained = materialized(lazy_kind)
    layer = spectral_norm(lazy_kind.make())
    layer.load_state_dict(trained.state_dict())
    assert torch.equal(layer(*inputs), trained(*inputs))
    for key, value in trained.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


def test_a_plain_state_dict_loads_before_the_first_forward(lazy_kind):
    plain = lazy_kind.make()
    inputs = lazy_kind.inputs()
    plain(*inputs)
    layer = spectral_norm(lazy_kind.make())
    layer.load_state_dict(plain.state_dict(), strict=True)
    layer(*inputs)
    assert torch.equal(layer.parametrizations.weight.original, plain.weight)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_made_before_the_first_forward_stands_on_its_own(lazy_kind, duplicate):
    inputs = lazy_kind.inputs()
    layer = spectral_norm(lazy_kind.make())
    twin = duplicate(layer)
    twin(*inputs)
    assert sigmas(twin)["weight"].isfinite()
    assert is_lazy(layer.weight)
    assert sigmas(layer)["weight"].isnan()
    layer(*inputs)
    assert sigmas(layer)["weight"].isfinite()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_made_between_load_and_first_forward(lazy_kind, duplicate):
    inputs = lazy_kind.inputs()
    layer = spectral_norm(lazy_kind.make())
    layer.load_state_dict(materialized(lazy_kind).state_dict())
    twin = duplicate(layer)
    assert torch.equal(twin(*inputs), layer(*inputs))
    assert type(twin).__name__ == type(layer).__name__


def test_an_optimizer_made_before_trains_it(lazy_kind):
    layer = spectral_norm(lazy_kind.make())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(*lazy_kind.inputs()).square().sum().backward()
    original = layer.parametrizations.weight.original
    before = original.detach().clone()
    optimizer.step()
    assert not torch.equal(original, before)


def test_a_model_of_lazy_layers_is_normalized_whole():
    model = apply_spectral_norm(
        nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    )
    apply_spectral_norm(model)
    model(torch.randn(2, 3, 5, 5))
    assert list(sigmas(model)) == ["0.weight", "3.weight"]


def test_removal_before_the_first_forward_cancels(lazy_kind):
    layer = remove_spectral_norm(spectral_norm(lazy_kind.make()))
    layer(*lazy_kind.inputs())
    assert sigmas(layer) == {}


def test_a_whole_file_holds_a_deferred_module():
    layer = spectral_norm(nn.LazyLinear(3), n_power_iterations=2)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    again(torch.randn(2, 5))
    assert again.parametrizations.weight[0].n_power_iterations == 2
