"""What becomes of a module with an orthogonal weight, and of a model of such."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from orthogonal_models import assert_orthonormal, begin_training, moved, network
from snorm_triton import (
    OrthogonalParametrization,
    apply_orthogonal,
    fold,
    orthogonal,
    remove_orthogonal,
    spectral_norm,
)


def test_lazy_modules(lazy_kind, kind):
    lazy = orthogonal(lazy_kind.make(), orthogonal_map=kind, dim=0)
    inputs = lazy_kind.inputs()
    expected = lazy(*inputs)
    assert isinstance(lazy.parametrizations.weight[0], OrthogonalParametrization)
    assert_orthonormal(lazy.weight, 0)
    other = orthogonal(lazy_kind.make(), orthogonal_map=kind, dim=0)
    assert not other.load_state_dict(lazy.state_dict()).missing_keys
    torch.testing.assert_close(other(*inputs), expected)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "file"]
)
def test_copies_are_independent(copied, kind):
    model = moved(apply_orthogonal(network(), orthogonal_map=kind, foreach=True))
    x = torch.randn(2, 6)
    expected = model(x)
    twin = copied(model)
    torch.testing.assert_close(twin(x), expected)
    twin[0].weight = torch.randn(6, 6)
    remove_orthogonal(twin, recursive=True)
    with torch.no_grad():
        twin[2].weight.zero_()
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", ["before", "after"])
def test_half_precision_is_rounded_once(dtype, order, kind):
    torch.manual_seed(1)
    layer = nn.Linear(20, 30)
    if order == "before":
        layer = orthogonal(layer.to(dtype), orthogonal_map=kind)
    else:
        layer = orthogonal(layer, orthogonal_map=kind).to(dtype)
    begin_training(layer)
    (norm,) = layer.parametrizations.weight
    if kind != "newton_schulz":
        assert norm.base.dtype == torch.float32
    weight = layer.weight
    assert weight.dtype == layer.parametrizations.weight.original.dtype == dtype
    exact = copy.deepcopy(layer).double()
    torch.testing.assert_close(weight, exact.weight.to(dtype), rtol=2**-7, atol=1e-5)
    assert_orthonormal(exact.weight)
    layer(torch.randn(2, 20, dtype=dtype)).float().sum().backward()
    assert layer.parametrizations.weight.original.grad.dtype == dtype


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_convolutions_by_dim(kind, dim):
    torch.manual_seed(2)
    for layer in (nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)):
        expected = layer.weight.stride()
        orthogonal(layer, orthogonal_map=kind, dim=dim)
        moved(layer)
        assert_orthonormal(layer.weight, dim)
        if kind == "newton_schulz" and dim == 0:
            assert layer.weight.stride() == expected
        layer(torch.randn(1, 3, 4, 4)).sum().backward()
        assert layer.parametrizations.weight.original.grad.shape == (5, 3, 3, 3)


@pytest.mark.parametrize(
    "write",
    [
        lambda layer: nn.init.normal_(layer.weight, 0, 0.5),
        lambda layer: layer.weight.data.normal_(0, 0.5),
        lambda layer: nn.init.orthogonal_(layer.weight),
    ],
    ids=["init", "data", "orthogonal"],
)
def test_what_is_written_before_the_first_forward_stays(write, kind):
    layer = orthogonal(nn.Linear(4, 4), orthogonal_map=kind)
    torch.manual_seed(3)
    write(layer)
    plain = nn.Linear(4, 4)
    torch.manual_seed(3)
    write(plain)
    layer(torch.zeros(1, 4))
    made = torch.linalg.qr(plain.weight)
    expected = made.Q * made.R.diagonal().sign()
    if kind == "newton_schulz":
        u, _, vh = torch.linalg.svd(plain.weight)
        expected = u @ vh
    torch.testing.assert_close(layer.weight, expected, rtol=1e-4, atol=1e-5)


def test_a_row_is_written_before_the_first_forward(kind):
    layer = orthogonal(nn.Linear(4, 3), orthogonal_map=kind)
    rest = layer.weight.detach()[1:].clone()
    new = torch.linalg.qr(layer.weight.detach().T, mode="complete").Q.T[3]
    with torch.no_grad():
        layer.weight[0] = new
    layer(torch.zeros(1, 4))
    torch.testing.assert_close(layer.weight, torch.cat([new[None], rest]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_trivialization", [True, False], ids=["base", "no base"])
def test_reset_parameters_initializes_the_weight(use_trivialization, kind):
    layer = orthogonal(nn.Linear(6, 6), "weight", kind, use_trivialization=use_trivialization)
    moved(layer)
    before = layer.weight.detach().clone()
    torch.manual_seed(4)
    layer.reset_parameters()
    after = layer.weight.detach()
    assert (after - before).norm() > 0.1
    assert_orthonormal(after)
    if use_trivialization:  # else the weight lies transposed in memory, where it is drawn
        torch.manual_seed(4)
        torch.testing.assert_close(after, orthogonal(nn.Linear(6, 6), "weight", kind).weight)


def test_fold_bakes_every_kind_in(kind):
    model = network()
    orthogonal(model[0], orthogonal_map=kind)
    parametrizations.orthogonal(model[2])
    spectral_norm(orthogonal(model[4], orthogonal_map=kind))
    moved(model).eval()
    x = torch.randn(2, 6)
    expected = model(x)
    assert fold(model) == ["0.weight", "2.weight", "4.weight"]
    torch.testing.assert_close(model(x), expected)
    assert model.state_dict().keys() == network().state_dict().keys()


def test_an_unchanged_weight_is_computed_once_in_evaluation(kind):
    layer = moved(orthogonal(nn.Linear(5, 4), orthogonal_map=kind)).eval()
    with torch.no_grad():
        first = layer.weight
        assert layer.weight.data_ptr() == first.data_ptr()
        layer.parametrizations.weight.original.add_(0.1 * torch.randn(4, 5))
        second = layer.weight.clone()
        assert not torch.allclose(second, first)
        if kind != "newton_schulz":
            layer.parametrizations.weight[0].base.neg_()
            torch.testing.assert_close(layer.weight, -second)
    assert layer.weight.requires_grad


def test_selection():
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    parametrizations.orthogonal(model[2])
    apply_orthogonal(model, exclude_names="3", orthogonal_map="cayley")
    assert isinstance(model[1].parametrizations.weight[0], OrthogonalParametrization)
    assert not hasattr(model[0], "parametrizations")
    apply_orthogonal(model, dim=0)
    assert_orthonormal(model[0].weight, 0)
    assert not isinstance(model[2].parametrizations.weight[0], OrthogonalParametrization)
    assert model[1].parametrizations.weight[0].orthogonal_map == "cayley"
    with pytest.warns(UserWarning, match="apply_orthogonal has normalized nothing"):
        apply_orthogonal(nn.ReLU())


def test_removal_leaves_the_weight():
    layer = moved(orthogonal(nn.Linear(4, 3)))
    expected = layer.weight.detach().clone()
    remove_orthogonal(layer)
    assert torch.equal(layer.weight, expected)
    assert layer.state_dict().keys() == nn.Linear(4, 3).state_dict().keys()
    stacked = spectral_norm(orthogonal(nn.Linear(4, 3)))
    expected = stacked.eval().weight.detach().clone()
    remove_orthogonal(stacked)
    torch.testing.assert_close(stacked.weight, expected)


def test_on_the_meta_device(kind):
    with torch.device("meta"):
        layer = orthogonal(nn.Linear(4, 3), orthogonal_map=kind)
    layer.to_empty(device="cpu")
    saved = moved(orthogonal(nn.Linear(4, 3), orthogonal_map=kind))
    layer.load_state_dict(saved.state_dict())
    torch.testing.assert_close(layer.weight, saved.weight)
