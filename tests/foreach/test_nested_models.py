"""Models inside models, and models that share a layer, iterate once a forward."""

import pytest
import torch
from torch import nn

from snorm_triton import apply_spectral_norm
from whole_models import (
    Doubled,
    Model,
    assert_nothing_is_prepared,
    iterations,
    normalized,
    state_of,
    unsettled,
)


@pytest.mark.parametrize("inner_first", [True, False])
def test_a_model_inside_a_model_iterates_once(inner_first):
    model = Doubled()
    order = [model.inner, model] if inner_first else [model, model.inner]
    for each in order:
        apply_spectral_norm(each, foreach=True)
    unsettled(model)
    before = state_of(model.inner.last), state_of(model.head)
    seen = []

    def meanwhile():
        seen.extend([model.inner.last.weight, model.inner.last.weight])

    model(torch.randn(3, 6), meanwhile).sum().backward()
    assert seen[0] is seen[1]
    assert iterations(model.inner.last, before[0]) == 1
    assert iterations(model.head, before[1]) == 1
    assert_nothing_is_prepared(model)


def test_an_inner_model_used_twice_by_an_outer_one_iterates_once():
    inner = apply_spectral_norm(nn.Linear(6, 6), foreach=True)
    model = nn.Sequential(inner, nn.ReLU(), inner)
    apply_spectral_norm(model, foreach=True)
    apply_spectral_norm(inner, foreach=True)
    unsettled(model)
    before = state_of(inner)
    model(torch.randn(3, 6)).sum().backward()
    assert iterations(inner, before) == 1
    inner(torch.randn(3, 6))
    assert iterations(inner, before) == 2


def test_a_second_model_that_shares_a_layer_may_run_inside_the_first():
    model = normalized(Model())
    other = apply_spectral_norm(nn.Sequential(model.last), foreach=True)
    before = state_of(model.last)
    x = torch.randn(3, 8)
    model(torch.randn(3, 6), lambda: other(x)).sum().backward()
    assert iterations(model.last, before) == 1
    other(x)
    assert iterations(model.last, before) == 2
    assert_nothing_is_prepared(model)
