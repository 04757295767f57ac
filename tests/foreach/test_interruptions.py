"""A forward that ends by an exception leaves nothing prepared."""

import weakref
from functools import partial

import pytest
import torch

from whole_models import (
    Model,
    assert_alike,
    assert_nothing_is_prepared,
    iterations,
    normalized,
    original_of,
    pair,
    state_of,
)


def test_nothing_is_left_prepared_when_the_forward_raises():
    model = normalized(Model())

    def fail():
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        model(torch.randn(3, 6), fail)
    assert_nothing_is_prepared(model)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("forwards", [0, 3])
def test_an_access_after_an_interrupt_iterates(forwards):
    model = normalized(Model())
    for _ in range(forwards):
        model(torch.randn(3, 6))
    before = state_of(model.last)
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(3, 6), interrupt)
    assert model.last.weight is not model.last.weight
    assert iterations(model.last, before) == 3


def test_accesses_after_an_interrupt_have_graphs_of_their_own():
    model = normalized(Model())
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(3, 6), interrupt)
    weights = model.last.weight, model.last.weight
    for weight in weights:
        weight.square().sum().backward()
    assert torch.isfinite(original_of(model.last).grad).all()


@pytest.mark.parametrize("forwards", [0, 3])
def test_a_forward_after_an_interrupt_prepares_anew(forwards):
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    for _ in range(forwards):
        assert_alike(together, one_by_one, x)
    with pytest.raises(KeyboardInterrupt):
        together(x, interrupt)
    one_by_one(x)
    assert_alike(together, one_by_one, x)


def after_forwards():
    """A model whose next forward is made as the last, its input, and a list."""
    model, x = normalized(Model()), torch.randn(3, 6)
    for _ in range(3):
        model(x)
    return model, x, []


def read_and_raise(model, seen, error):
    seen.append(weakref.ref(model.last.weight))
    raise error


def test_an_exception_leaves_no_graph():
    model, x, seen = after_forwards()
    read_and_fail = partial(read_and_raise, model, seen, RuntimeError("halfway"))

    def fails():
        with pytest.raises(RuntimeError, match="halfway"):
            model(x, read_and_fail)

    fails()
    assert seen[0]() is None
    with torch.no_grad():
        model.eval()
        for _ in range(3):
            model(x)
        fails()  # an evaluation that is read as it is
        assert torch.equal(model(x), model(x))


def test_what_an_interrupt_has_left_ends_with_the_next_forward():
    model, x, seen = after_forwards()
    with pytest.raises(KeyboardInterrupt):
        model(x, partial(read_and_raise, model, seen, KeyboardInterrupt()))
    model(x)
    assert seen[0]() is None
    assert_nothing_is_prepared(model)
