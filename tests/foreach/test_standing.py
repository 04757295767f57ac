"""Forwards after the first are prepared as the last one was, unless anything has changed."""

import copy
import io
import pickle
import warnings
import weakref
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from snorm_triton import apply_spectral_norm, apply_weight_norm, remove_spectral_norm
from snorm_triton.modules import whole_model
from whole_models import (
    Model,
    assert_same_gradients,
    assert_same_state,
    iterations,
    normalized,
    original_of,
    pair,
    state_of,
)


@contextmanager
def walks(count):
    """Expect so many forwards to look at the model anew."""
    with mock.patch.object(whole_model, "_joined", side_effect=whole_model._joined) as walk:
        yield
    assert walk.call_count == count


def train(model, x):
    model(x).square().sum().backward()


def step(model):
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_training_steps_after_the_first_do_not_look_at_the_model():
    model, x = normalized(Model()), torch.randn(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, x)  # until then weights are fresh
    with walks(1):
        for _ in range(4):
            train(model, x)
            optimizer.step()
            optimizer.zero_grad()


def test_forwards_of_several_kinds_may_take_turns():
    model, x = normalized(Model()), torch.randn(3, 6)

    def round_of_all():
        train(model, x)
        model.requires_grad_(False)
        model(x)
        model.requires_grad_()
        with torch.no_grad():
            model(x)

    round_of_all()
    round_of_all()
    with walks(0):
        round_of_all()
        round_of_all()


def test_replays_are_told_from_iterations():
    model, x = normalized(Model(), power_iter="update"), torch.randn(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.step()
        train(model, x)
        train(model, x)
    with walks(0):
        optimizer.step()
        before = [state_of(layer) for layer in (model.first, model.last)]
        train(model, x)
        train(model, x)
    after = map(iterations, (model.first, model.last), before)
    assert list(after) == [1, 1]


@torch.no_grad()
def test_an_evaluation_that_nothing_has_changed_is_read_at_once():
    model, x = normalized(Model()).eval(), torch.randn(3, 6)
    for _ in range(2):
        expected = model(x)
    with walks(0):
        assert torch.equal(model(x), expected)
        seen = []
        model(x, lambda: seen.append(model.last.weight))
    assert seen[0].data_ptr() == model.last.weight.data_ptr()
    original_of(model.last).mul_(2)
    model.last.parametrizations.weight[0]._v.mul_(0.5)
    assert torch.equal(model(x), copy.deepcopy(model)(x))


def test_a_change_in_place_is_warned_of_all_the_same():
    model, x = normalized(Model()), torch.randn(3, 6)
    seen = []
    for _ in range(3):
        model(x, lambda: seen.append(model.last.weight))
    with torch.no_grad():
        seen[-1].mul_(2)
    with pytest.warns(UserWarning, match=r"last\.weight.* was changed in place"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)


def test_a_change_in_place_during_the_forward_is_warned_of():
    model, x = normalized(Model()), torch.randn(3, 6)
    for _ in range(3):
        model(x)

    def change():
        with torch.no_grad():
            model.last.weight.mul_(2)

    with pytest.warns(UserWarning, match="was changed in place"):
        model(x, change)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), "saved"],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_prepares_weights_of_its_own(duplicate):
    def saved(model):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    model, x = normalized(Model()), torch.randn(3, 6)
    for _ in range(3):
        train(model, x)
    twin = (saved if duplicate == "saved" else duplicate)(model)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        train(twin, x)
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    for _ in range(3):
        train(model, x)
    assert_same_state(model, twin)


@pytest.mark.usefixtures("no_collection")
def test_weights_that_were_handed_out_are_not_kept():
    model, x, seen = normalized(Model()), torch.randn(3, 6), []
    for _ in range(4):
        model(x, lambda: seen.append(weakref.ref(model.first.weight)))
        assert seen[-1]() is None


@pytest.mark.usefixtures("no_collection")
def test_a_model_is_given_back_at_once():
    model = normalized(Model())
    for _ in range(4):
        train(model, torch.randn(3, 6))
    whole = weakref.ref(model)
    del model
    assert whole() is None


class First(Model):
    """The first weight alone is used."""

    def forward(self, x, meanwhile=None):
        return self.first(x)


@pytest.mark.parametrize("model", [First, Model])
def test_gradients_of_those_that_are_used(model):
    together, one_by_one = pair(model())
    for each in (together, one_by_one):
        for _ in range(3):
            each.zero_grad()
            train(each, torch.ones(3, 6))
    assert_same_gradients(together, one_by_one)


def test_second_derivatives_of_a_round():
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6, requires_grad=True)
    for model in (together, one_by_one):
        for _ in range(3):
            (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            model.zero_grad()
            grad.square().sum().backward()
    assert_same_gradients(together, one_by_one)


def test_a_changed_weight_has_no_gradient_of_a_round():
    model, x = normalized(Model()), torch.randn(3, 6)
    for _ in range(3):
        loss = model(x).sum()
    with torch.no_grad():
        original_of(model.last).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        loss.backward()


def test_detaching_the_hooks_leaves_nothing():
    model = normalized(Model())
    for _ in range(3):
        model(torch.randn(3, 6))
    remove_spectral_norm(model, recursive=True)
    assert not any("standing" in name for name in model.__dict__)
    apply_spectral_norm(model, foreach=True)(torch.randn(3, 6))


def test_weight_norms_too():
    models = []
    for foreach in (True, False):
        torch.manual_seed(0)
        models.append(apply_weight_norm(Model(), foreach=foreach))
    together, one_by_one = models
    x = torch.randn(3, 6)
    with walks(2):  # the first while weights are fresh
        for do in (train, train, train, lambda model, x: step(model), train):
            for model in models:
                do(model, x)
    assert_same_gradients(together, one_by_one)
    with torch.no_grad():
        together.first.parametrizations.weight.original0.mul_(2)
        one_by_one.first.parametrizations.weight.original0.mul_(2)
    assert torch.equal(together(x), one_by_one(x))
    together.first.parametrizations.weight.original1.data = torch.ones(8, 6)
    one_by_one.first.parametrizations.weight.original1.data = torch.ones(8, 6)
    assert torch.equal(together(x), one_by_one(x))
