"""Copies and pickles of a model prepare weights of their own."""

import copy
import pickle

import pytest
import torch

from snorm_triton import remove_spectral_norm
from whole_models import (
    Model,
    assert_nothing_is_prepared,
    assert_same_state,
    hooks_of,
    iterations,
    normalized,
    read_twice,
    state_of,
)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


duplicates = pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])


@duplicates
@pytest.mark.parametrize("inside", [True, False], ids=["inside-a-forward", "outside"])
def test_a_copy_is_a_model_of_its_own(duplicate, inside):
    model = normalized(Model())
    x = torch.randn(3, 6)
    copies = []
    model(x, (lambda: copies.append(duplicate(model))) if inside else None)
    twin = copies[0] if inside else duplicate(model)
    assert_nothing_is_prepared(twin)
    assert_same_state(model, twin)

    before, twin_before = state_of(model.last), state_of(twin.last)
    twin(x).sum().backward()
    assert iterations(twin.last, twin_before) == 1
    assert iterations(model.last, before) == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    model(x)
    assert_same_state(model, twin)


@duplicates
def test_a_copy_prepares_its_own_weights(duplicate):
    twin = duplicate(normalized(Model()))
    first, second = read_twice(twin, twin.last)
    assert first is second


@duplicates
def test_a_copy_may_run_inside_the_forward_of_the_original(duplicate):
    model = normalized(Model())
    x = torch.randn(3, 6)
    twin = duplicate(model)
    before, twin_before = state_of(model.last), state_of(twin.last)
    model(x, lambda: twin(x)).sum().backward()
    assert iterations(model.last, before) == 1
    assert iterations(twin.last, twin_before) == 1


@duplicates
def test_removal_from_a_copy_leaves_the_original(duplicate):
    model = normalized(Model())
    hooks = len(hooks_of(model))
    twin = remove_spectral_norm(duplicate(model), recursive=True)
    assert not hooks_of(twin)
    assert len(hooks_of(model)) == hooks
