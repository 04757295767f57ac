"""What was prepared for a weight is not handed out once the weight or its mode has changed."""

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


@pytest.mark.parametrize(
    "change",
    [scale_in_place, swap_data, assign, *map(step_with, OPTIMIZERS.values())],
    ids=["in-place", "data", "assigned", *OPTIMIZERS],
)
def test_a_weight_changed_during_the_forward_is_normalized_anew(change):
    model = normalized(Model())
    seen = []

    def meanwhile():
        state = state_of(model.last)
        change(model.last)
        seen.extend([model.last.weight, step_from(model.last, *state).weight_sn])

    model(torch.randn(3, 6), meanwhile)
    assert torch.equal(*seen)
    seen[0].square().sum().backward()
    assert original_of(model.last).grad is not None


def test_a_parameter_put_in_its_place_during_the_forward_gets_the_gradient():
    model = normalized(Model())
    parametrizations = model.last.parametrizations.weight
    original = parametrizations.original

    def meanwhile():
        parametrizations.original = nn.Parameter(original.detach())

    model(torch.randn(3, 6), meanwhile).sum().backward()
    assert parametrizations.original is not original
    assert parametrizations.original.grad is not None
    assert original.grad is None


def test_gradients_enabled_inside_a_forward_without_them_find_a_graph():
    model = normalized(Model())
    seen = []

    def meanwhile():
        seen.append(model.last.weight)
        with torch.enable_grad():
            seen.append(model.last.weight)

    with torch.no_grad():
        model(torch.randn(3, 6), meanwhile)
    assert not seen[0].requires_grad
    seen[1].square().sum().backward()
    assert original_of(model.last).grad is not None


def test_a_weight_frozen_during_the_forward_has_no_graph():
    model = normalized(Model())
    original = original_of(model.last)
    seen = []

    def meanwhile():
        original.requires_grad_(False)
        seen.append(model.last.weight)
        original.requires_grad_(True)

    model(torch.randn(3, 6), meanwhile)
    assert not seen[0].requires_grad


def test_a_layer_set_to_evaluation_during_the_forward_does_not_iterate_again():
    model = normalized(Model())
    before = state_of(model.last)
    seen = []

    def meanwhile():
        seen.append(model.last.weight)
        model.last.eval()
        seen.append(model.last.weight)

    model(torch.randn(3, 6), meanwhile)
    assert seen[0] is not seen[1]
    assert iterations(model.last, before) == 1
