"""Accesses to the weight, arguments and optimizers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def norm(weight):
    return torch.linalg.matrix_norm(weight, 2).item()


def direction(weight):
    return F.normalize(weight.flatten(), dim=0)


@pytest.mark.promise(
    "`module.weight` right after normalizing",
    hook=("not normalized until a forward", AssertionError),
)
def test_weight_before_a_forward(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    assert norm(layer.weight) == pytest.approx(1, abs=0.01)


@pytest.mark.promise(
    "`module.weight` after a step of the optimizer", hook=("the last forward's", AssertionError)
)
def test_weight_after_a_step(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(direction(layer.weight), direction(sn.original(layer)))


@pytest.mark.promise(
    "A layer whose forward nothing calls, as the `out_proj` of `nn.MultiheadAttention`",
    hook=("never normalized", AssertionError),
)
def test_weight_without_a_forward(sn):
    attention = nn.MultiheadAttention(8, 2)
    nn.init.normal_(attention.out_proj.weight)
    sn.spectral_norm(attention.out_proj)
    x = torch.randn(3, 2, 8)
    for _ in range(50):
        attention(x, x, x)
    assert norm(attention.out_proj.weight) == pytest.approx(1, abs=0.01)


@pytest.mark.promise("Several parameters of a module, by their names: those of an `nn.LSTM`")
def test_parameters_by_name(sn):
    lstm, names = nn.LSTM(4, 3), ("weight_ih_l0", "weight_hh_l0")
    for name in names:
        sn.spectral_norm(lstm, name)
    for _ in range(50):
        output, _ = lstm(torch.randn(5, 2, 4))
    for name in names:
        assert norm(getattr(lstm, name)) == pytest.approx(1, abs=0.01)
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in lstm.parameters())


@pytest.mark.promise("`name`, `n_power_iterations`, `eps` and `dim` by position")
def test_arguments_by_position(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4), "weight", 50, 1e-12, 1)
    assert [len(vector) for vector in sn.vectors(layer)] == [6, 4]
    assert norm(sn.weight(layer)) == pytest.approx(1, abs=0.01)


@pytest.mark.promise(
    "Removal from `weight` without its name", parametrization=("TypeError: no default", TypeError)
)
def test_removal_without_a_name(sn):
    layer = sn.remove(sn.spectral_norm(nn.Linear(6, 4)))
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


def assert_trains(optimizer, layer, parameter):
    before = parameter.detach().clone()
    layer(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(parameter, before)


@pytest.mark.promise("An optimizer made before normalizing trains what it normalizes")
def test_optimizer_made_before_normalizing(sn):
    layer = nn.Linear(6, 4)
    optimizer = torch.optim.Adam(layer.parameters())
    sn.spectral_norm(layer)
    assert_trains(optimizer, layer, sn.original(layer))


@pytest.mark.promise(
    "An optimizer made before removal trains what is left",
    hook=("another parameter, left untrained", AssertionError),
)
def test_optimizer_made_before_removal(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    optimizer = torch.optim.Adam(layer.parameters())
    sn.remove(layer, "weight")
    assert_trains(optimizer, layer, layer.weight)
