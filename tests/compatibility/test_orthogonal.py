"""Orthogonal weights, of torch.nn.utils.parametrizations.orthogonal."""

import copy
import pickle

import pytest
import torch
from torch import nn

import snorm_triton

NO_HOOK = "torch has none"


def defect(weight):
    """How far the rows or the columns are from orthonormal."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    return (tall.T @ tall - torch.eye(tall.shape[1])).abs().max().item()


@pytest.mark.promise("Three maps, with and without a base", hook=NO_HOOK)
@pytest.mark.parametrize("orthogonal_map", ["matrix_exp", "cayley", "householder"])
@pytest.mark.parametrize("use_trivialization", [True, False])
def test_maps(oo, orthogonal_map, use_trivialization):
    layer = nn.Linear(5, 7)
    oo.orthogonal(layer, orthogonal_map=orthogonal_map, use_trivialization=use_trivialization)
    assert defect(layer.weight) < 1e-5
    layer.weight.square().sum().backward()
    assert layer.parametrizations.weight.original.grad is not None


@pytest.mark.promise("A lazy module", hook=NO_HOOK, parametrization=("refused", ValueError))
def test_lazy(oo):
    layer = oo.orthogonal(nn.LazyLinear(3))
    layer(torch.randn(2, 5))
    assert defect(layer.weight) < 1e-5


@pytest.mark.promise(
    "`pickle` of a module", hook=NO_HOOK, parametrization=("refused", RuntimeError)
)
def test_pickle(oo):
    layer = oo.orthogonal(nn.Linear(5, 3))
    assert torch.equal(pickle.loads(pickle.dumps(layer)).weight, layer.weight)


@pytest.mark.promise("`copy.deepcopy` of a module", hook=NO_HOOK)
def test_deepcopy(oo):
    layer = oo.orthogonal(nn.Linear(5, 3))
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


@pytest.mark.promise(
    "Half precision", hook=NO_HOOK, parametrization=("torch.linalg has none", RuntimeError)
)
def test_half_precision(oo):
    layer = oo.orthogonal(nn.Linear(5, 3).bfloat16())
    assert layer.weight.dtype == torch.bfloat16
    assert defect(layer.weight.float()) < 0.02


@pytest.mark.promise(
    "`nn.init` of the weight after wrapping",
    hook=NO_HOOK,
    parametrization=("lost, in silence", AssertionError),
)
def test_initialization(oo):
    layer = oo.orthogonal(nn.Linear(3, 3, bias=False))
    nn.init.eye_(layer.weight)
    x = torch.randn(2, 3)
    torch.testing.assert_close(layer(x), x)


@pytest.mark.promise(
    "A convolution's weight as one matrix, by `dim`",
    hook=NO_HOOK,
    parametrization=("none", TypeError),
)
def test_convolution(oo):
    layer = oo.orthogonal(nn.Conv2d(3, 4, 3), dim=0)
    assert defect(layer.weight.flatten(1)) < 1e-5


@pytest.mark.promise(
    'By matrix products alone: `orthogonal_map="newton_schulz"`',
    hook=NO_HOOK,
    parametrization=("none", ValueError),
)
def test_newton_schulz(oo):
    layer = oo.orthogonal(nn.Linear(5, 7), orthogonal_map="newton_schulz")
    assert defect(layer.weight) < 1e-5


@pytest.mark.promise("`torch.compile(fullgraph=True)`", hook=NO_HOOK)
def test_compiled(oo):
    layer, x = oo.orthogonal(nn.Linear(5, 5)), torch.randn(2, 5)
    expected = layer(x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.promise("`snorm_triton.fold(model)`", hook=NO_HOOK)
def test_fold(oo):
    layer = oo.orthogonal(nn.Linear(5, 3)).eval()
    expected = layer.weight.detach().clone()
    assert snorm_triton.fold(layer) == ["weight"]
    torch.testing.assert_close(layer.weight.detach(), expected)
