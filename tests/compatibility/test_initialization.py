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


IN_PLACE = pytest.mark.parametrize(
    "change",
    [
        pytest.param(nn.init.xavier_uniform_, id="init"),
        pytest.param(lambda weight: weight.detach().mul_(2), id="detached"),
        pytest.param(lambda weight: weight[0].detach().zero_(), id="row"),
    ],
)


def assert_kept_or_told(sn, layer, change):
    weight = layer.weight
    before = weight.detach().clone()
    change(weight)
    is_new = weight != before
    if torch.equal(sn.original(layer)[is_new], weight[is_new]):
        return
    right = re.escape("change module.parametrizations.weight.original")
    with pytest.warns(UserWarning, match=right):
        layer(torch.randn(2, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(2, 6))  # it is told once


@IN_PLACE
@pytest.mark.promise(
    "`nn.init.*_(module.weight)` right after normalizing: kept, or said to be lost",
    parametrization=("lost, and nothing says so", pytest.fail.Exception),
)
def test_initialization_in_place(sn, change):
    assert_kept_or_told(sn, sn.spectral_norm(nn.Linear(6, 4)), change)


@IN_PLACE
@pytest.mark.promise(
    "The same after a forward", torch=("lost, and nothing says so", pytest.fail.Exception)
)
def test_initialization_in_place_after_a_forward(sn, change):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    layer(torch.randn(2, 6))
    assert_kept_or_told(sn, layer, change)


@pytest.mark.promise("`nn.init.*_` on the parameter before normalization")
def test_initialization_of_the_original(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    sn.weight(layer)
    nn.init.ones_(sn.original(layer))
    for _ in range(20):
        weight = sn.weight(layer)
    torch.testing.assert_close(weight, torch.full((4, 6), 24**-0.5))


@pytest.mark.promise(
    "`module.weight = tensor`, and `module.weight *= 2`",
    hook=("lost, and nothing says so", AssertionError),
)
def test_assignment(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    value, parameter = torch.randn(4, 6), sn.original(layer)
    layer.weight = value.clone()
    assert sn.original(layer) is parameter
    assert torch.equal(parameter, value)
    for _ in range(50):
        weight = sn.weight(layer)
    assert norm(weight) == pytest.approx(1, abs=1e-3)
    with torch.no_grad():
        layer.weight *= 2
    assert norm(sn.original(layer)) == pytest.approx(2, abs=2e-3)


def assert_reset(sn, layer):
    torch.manual_seed(1)
    expected = nn.Linear(6, 4)
    torch.manual_seed(1)
    layer.reset_parameters()
    assert torch.equal(sn.original(layer), expected.weight)
    assert torch.equal(layer.bias, expected.bias)


@pytest.mark.promise(
    "`module.reset_parameters()` right after normalizing",
    parametrization=("lost, and nothing says so", AssertionError),
)
def test_reset_parameters(sn):
    assert_reset(sn, sn.spectral_norm(nn.Linear(6, 4)))


@pytest.mark.promise(
    "The same after a forward, then evaluation",
    torch=("lost, and nothing says so", AssertionError),
)
def test_reset_parameters_after_a_forward(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    layer(torch.randn(2, 6))
    assert_reset(sn, layer)
    assert norm(sn.weight(layer.eval())) == pytest.approx(1, abs=0.01)


@pytest.mark.promise("Evaluation before any training", hook=("u and v are random", AssertionError))
def test_evaluation_before_training(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4)).eval()
    assert norm(sn.weight(layer)) == pytest.approx(1, abs=0.01)


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
    torch=("u and v are what memory held", AssertionError),
)
def test_meta(sn):
    model = materialize(sn, initialize_originals).eval()
    for layer in (model[0], model[2]):
        assert norm(sn.weight(layer)) == pytest.approx(1, abs=0.02)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.promise(
    "Meta-device initialization that calls `reset_parameters` on every module",
    torch=("the weights stay what memory held", AssertionError),
)
def test_meta_and_reset_parameters(sn):
    def initialize(model):
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    model = materialize(sn, initialize).eval()
    for layer in (model[0], model[2]):
        assert norm(sn.weight(layer)) == pytest.approx(1, abs=0.02)
        assert layer.bias.isfinite().all()


@pytest.mark.promise(
    "u and v from the weights as they are now, whatever the mode", torch="15 forwards in training"
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
        assert norm(sn.weight(layer)) == pytest.approx(1, abs=1e-3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
