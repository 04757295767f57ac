"""Initializing a model after it was normalized."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

import snorm_triton


def norm(weight):
    assert weight.isfinite().all()
    return torch.linalg.matrix_norm(weight.flatten(1), 2).item()


def original_of(layer):
    return layer.parametrizations.weight.original


IN_PLACE = [
    pytest.param(lambda layer: nn.init.xavier_uniform_(layer.weight), id="init"),
    pytest.param(lambda layer: layer.weight.detach().mul_(2), id="detached"),
    pytest.param(lambda layer: layer.weight[0].detach().zero_(), id="row"),
]


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.promise(
    "`nn.init.*_(module.weight)`, which changes a temporary",
    fails="lost, and nothing says so",
    raises=pytest.fail.Exception,
)
def test_a_lost_initialization_is_told(sn, change):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    change(layer)
    right = re.escape("nn.init.xavier_uniform_(module.parametrizations.weight.original)")
    with pytest.warns(UserWarning, match=right):
        layer(torch.randn(2, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(2, 6))  # it is told once


@pytest.mark.promise("`nn.init.*_` on the parameter before normalization")
def test_initialization_of_the_original(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    layer.weight  # noqa: B018
    nn.init.ones_(original_of(layer))
    for _ in range(20):
        weight = layer.weight
    torch.testing.assert_close(weight, torch.full((4, 6), 24**-0.5))


@pytest.mark.promise("`module.weight = tensor`, and `module.weight *= 2`")
def test_assignment(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    value, parameter = torch.randn(4, 6), original_of(layer)
    layer.weight = value.clone()
    assert original_of(layer) is parameter
    assert torch.equal(parameter, value)
    for _ in range(50):
        weight = layer.weight
    assert norm(weight) == pytest.approx(1, abs=1e-3)
    with torch.no_grad():
        layer.weight *= 2
    assert norm(original_of(layer)) == pytest.approx(2, abs=2e-3)


@pytest.mark.promise(
    "`module.reset_parameters()` after normalizing",
    fails="lost, and nothing says so",
    raises=AssertionError,
)
def test_reset_parameters(sn):
    torch.manual_seed(1)
    expected = nn.Linear(6, 4)
    layer = sn.spectral_norm(nn.Linear(6, 4))
    torch.manual_seed(1)
    layer.reset_parameters()
    assert torch.equal(original_of(layer), expected.weight)
    assert torch.equal(layer.bias, expected.bias)
    assert norm(layer.eval().weight) == pytest.approx(1, abs=0.01)


@pytest.mark.promise("Evaluation before any training")
def test_evaluation_before_training(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4)).eval()
    assert norm(layer.weight) == pytest.approx(1, abs=0.01)


def materialize(sn, initialize):
    """Build and normalize on the meta device, allocate, initialize."""
    with torch.device("meta"):
        model = sn.apply(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4)))
    model.to_empty(device="cpu")
    initialize(model)
    return model


def initialize_originals(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.promise(
    "Built on the meta device, `to_empty`, initialized: evaluation before any training",
    fails="u and v are what memory held",
    raises=AssertionError,
)
def test_meta(sn):
    model = materialize(sn, initialize_originals).eval()
    for layer in (model[0], model[2]):
        assert norm(layer.weight) == pytest.approx(1, abs=0.02)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.promise(
    "Meta-device initialization that calls `reset_parameters` on every module",
    fails="the weights stay what memory held",
    raises=AssertionError,
)
def test_meta_and_reset_parameters(sn):
    def initialize(model):
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    model = materialize(sn, initialize).eval()
    for layer in (model[0], model[2]):
        assert norm(layer.weight) == pytest.approx(1, abs=0.02)
        assert layer.bias.isfinite().all()


@pytest.mark.promise(
    "u and v from the weights as they are now, whatever the mode", lacks="15 accesses in training"
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_refresh(sn, training):
    model = materialize(sn, initialize_originals).train(training)
    before = copy.deepcopy(dict(model.named_parameters()))
    addresses = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    for buffer in model.buffers():
        buffer.fill_(torch.nan)
    assert snorm_triton.refresh_spectral_norm(model, n_power_iterations=100) is model
    assert {name: buffer.data_ptr() for name, buffer in model.named_buffers()} == addresses
    for layer in (model.eval()[0], model[2]):
        assert norm(layer.weight) == pytest.approx(1, abs=1e-3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
