"""What was prepared for a weight is not handed out once the weight or its mode has changed."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from whole_models import (
    OPTIMIZERS,
    Model,
    iterations,
    normalized,
    original_of,
    scale_in_place,
    state_of,
    step_from,
)

X = torch.randn(3, 6)


def swap_data(layer):
    original_of(layer).data = original_of(layer).data * 1.5 + 0.1


def assign(layer):
    layer.weight = torch.randn_like(original_of(layer))


def step_with(optimizer):
    def step(layer):
        weight = original_of(layer)
        weight.grad = torch.randn_like(weight)
        optimizer([weight]).step()
        weight.grad = None

    return step


@pytest.fixture(params=[0, 3], ids=["first", "fourth"])
def forwards(request):
    """How many there were before the one in which something changes."""
    return request.param


def after_forwards(count):
    model = normalized(Model())
    for _ in range(count):
        model(X)
        with torch.no_grad():
            model(X)
    return model


@pytest.mark.parametrize(
    "change",
    [scale_in_place, swap_data, assign, *map(step_with, OPTIMIZERS.values())],
    ids=["in-place", "data", "assigned", *OPTIMIZERS],
)
def test_a_weight_changed_during_the_forward_is_normalized_anew(change, forwards):
    model = after_forwards(forwards)
    seen = []

    def meanwhile():
        state = state_of(model.last)
        change(model.last)
        seen.extend([model.last.weight, step_from(model.last, *state).weight_sn])

    model(X, meanwhile)
    assert torch.equal(*seen)
    seen[0].square().sum().backward()
    assert original_of(model.last).grad is not None


def test_a_parameter_put_in_its_place_during_the_forward_gets_the_gradient(forwards):
    model = after_forwards(forwards)
    parametrizations = model.last.parametrizations.weight
    original = parametrizations.original

    def meanwhile():
        parametrizations.original = nn.Parameter(original.detach())

    model(X, meanwhile).sum().backward()
    assert parametrizations.original is not original
    assert parametrizations.original.grad is not None
    assert original.grad is None


def test_gradients_enabled_inside_a_forward_without_them_find_a_graph(forwards):
    model = after_forwards(forwards)
    seen = []

    def meanwhile():
        seen.append(model.last.weight)
        with torch.enable_grad():
            seen.append(model.last.weight)

    with torch.no_grad():
        model(X, meanwhile)
    assert not seen[0].requires_grad
    seen[1].square().sum().backward()
    assert original_of(model.last).grad is not None


def test_a_weight_frozen_during_the_forward_has_no_graph(forwards):
    model = after_forwards(forwards)
    original = original_of(model.last)
    seen = []

    def meanwhile():
        original.requires_grad_(False)
        seen.append(model.last.weight)
        original.requires_grad_(True)

    model(X, meanwhile)
    assert not seen[0].requires_grad


def test_a_layer_set_to_evaluation_during_the_forward_does_not_iterate_again(forwards):
    model = after_forwards(forwards)
    before = state_of(model.last)
    seen = []

    def meanwhile():
        seen.append(model.last.weight)
        model.last.eval()
        seen.append(model.last.weight)

    model(X, meanwhile)
    assert seen[0] is not seen[1]
    assert iterations(model.last, before) == 1


def swap_state(layer):
    layer.parametrizations.weight[0]._u = torch.ones(5) / 5**0.5


def scale_vector_in_place(layer):
    layer.parametrizations.weight[0]._u.mul_(torch.tensor([1.0, 2, 3, 4, 5]))


def to_training(layer):
    layer.train()


@pytest.mark.parametrize(
    "change",
    [scale_in_place, swap_data, assign, swap_state, scale_vector_in_place, to_training],
    ids=lambda each: each.__name__,
)
@torch.no_grad()
def test_an_evaluation_during_whose_forward_something_changes(change, forwards):
    model = after_forwards(0).eval()
    for _ in range(forwards):
        model(X)
    seen = []

    def meanwhile():
        before = model.last.weight
        change(model.last)
        state = state_of(model.last)
        seen.extend([before, model.last.weight])
        if model.last.training:
            seen.append(step_from(model.last, *state).weight_sn)
        else:
            seen.append(copy.deepcopy(model.last).weight)

    model(X, meanwhile)
    before, after, expected = seen
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def append(layer):
    layer.parametrizations.weight.append(Doubled())


def put_in_place(layer):
    new = copy.deepcopy(layer.parametrizations.weight[0])
    new.options = replace(new.options, scale=2.0)
    layer.parametrizations.weight[0] = new


@pytest.mark.parametrize("change", [append, put_in_place], ids=lambda each: each.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_another_parametrization_counts_at_once(change, training, forwards):
    model = after_forwards(forwards).train(training)
    seen = []

    def meanwhile():
        seen.append(model.last.weight)
        change(model.last)
        seen.append(model.last.weight)

    with torch.set_grad_enabled(training):
        for _ in range(forwards):
            model(X)
        model(X, meanwhile)
    before, after = (weight.norm().item() for weight in seen)
    assert after > 1.5 * before


@torch.no_grad()
def test_gradients_that_a_forward_enables_find_a_graph_of_an_evaluation():
    model = after_forwards(0).eval()
    for _ in range(3):
        model(X)
    seen = []

    def meanwhile():
        with torch.enable_grad():
            seen.append(model.last.weight)

    model(X, meanwhile)
    with torch.enable_grad():
        seen[0].square().sum().backward()
    assert original_of(model.last).grad is not None
