"""Layers may come, go, move and lose their normalization; each forward finds the model as it is."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from snorm_triton import apply_spectral_norm, remove_spectral_norm, spectral_norm
from whole_models import (
    Doubled,
    Model,
    assert_alike,
    hooks_of,
    iterations,
    normalized,
    pair,
    read_twice,
    state_of,
    unsettled,
)


def test_a_layer_added_later_is_normalized_with_the_others():
    together, one_by_one = pair(Model())
    added = unsettled(spectral_norm(nn.Linear(5, 5)))
    for model in (together, one_by_one):
        model.last = nn.Sequential(model.last, copy.deepcopy(added))
    before = state_of(together.last[1])
    first, second = read_twice(together, together.last[1])
    assert first is second
    assert iterations(together.last[1], before) == 1
    one_by_one(torch.randn(3, 6))
    assert_alike(together, one_by_one, torch.randn(3, 6))


def test_a_layer_taken_out_is_left_alone():
    model = normalized(Model())
    first, model.first = model.first, nn.Linear(6, 8)
    before = state_of(first)
    model(torch.randn(3, 6)).sum().backward()
    assert iterations(first, before) == 0


@pytest.mark.parametrize(
    "remove",
    [
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        remove_spectral_norm,
        lambda layer: remove_spectral_norm(layer, leave_parametrized=False),
    ],
    ids=["torch", "ours", "ours-before"],
)
def test_a_layer_may_lose_its_normalization(remove):
    together, one_by_one = pair(Model())
    for model in (together, one_by_one):
        model(torch.ones(3, 6))
        remove(model.first)
    assert not parametrize.is_parametrized(together.first)
    assert_alike(together, one_by_one, torch.randn(3, 6))


def test_recursive_removal_leaves_no_hooks():
    model = normalized(Doubled())
    apply_spectral_norm(model.inner, foreach=True)
    assert hooks_of(model)
    remove_spectral_norm(model, recursive=True)
    assert not hooks_of(model)


def test_recursive_removal_leaves_the_hooks_of_others():
    model = normalized(Model())
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append("before"))
    model.register_forward_hook(
        lambda module, args, output: calls.append("after"), always_call=True
    )
    remove_spectral_norm(model, recursive=True)
    model(torch.randn(3, 6))
    assert calls == ["before", "after"]


def test_applying_again_adds_no_hooks():
    model = normalized(Model())
    hooks = len(hooks_of(model))
    for foreach in (True, None, True):
        apply_spectral_norm(model, foreach=foreach)
        assert len(hooks_of(model)) == hooks


def test_a_lazy_layer_joins_at_its_first_forward():
    model = apply_spectral_norm(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LazyLinear(5)), foreach=True
    )
    model(torch.randn(3, 6))
    before = state_of(unsettled(model)[2])
    model(torch.randn(3, 6)).sum().backward()
    assert iterations(model[2], before) == 1


def test_the_forward_of_a_moved_model_finds_its_new_weights():
    together, one_by_one = pair(Model())
    for model in (together, one_by_one):
        model(torch.randn(3, 6))
        model.double()
    assert_alike(together, one_by_one, torch.randn(3, 6).double())
