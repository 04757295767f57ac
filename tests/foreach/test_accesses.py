"""What an access of a weight gets during a forward of its model, and what it gets outside."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from snorm_triton import apply_spectral_norm
from snorm_triton.modules.standing import ATTRIBUTE
from whole_models import (
    Model,
    assert_nothing_is_prepared,
    assert_same_state,
    hooks_of,
    iterations,
    normalized,
    original_of,
    pair,
    read_twice,
    state_of,
    step_from,
)


class TwiceUsed(Model):
    def forward(self, x):
        return self.last(self.first(x) + self.first(x.relu()))


def test_every_access_of_a_forward_gets_the_same_weight(backend):
    model = normalized(Model(), backend=backend)
    for layer in (model.first, model.last):
        first, second = read_twice(model, layer)
        assert first is second


@pytest.mark.parametrize("n_power_iterations", [1, 2, 3])
def test_each_forward_makes_as_many_iterations_as_asked_for(n_power_iterations):
    model = normalized(Model(), n_power_iterations=n_power_iterations)
    before = [(layer, state_of(layer)) for layer in (model.first, model.last)]
    for forwards in (1, 2):
        read_twice(model, model.last)
        for layer, state in before:
            assert iterations(layer, state) == forwards * n_power_iterations


def test_what_serves_an_access_outlasts_the_round():
    model, x = normalized(Model()), torch.randn(3, 6)
    for _ in range(3):
        model(x)
    served = []

    def meanwhile():
        parametrization = model.last.parametrizations.weight[0]
        originals = (original_of(model.last),)
        served.append(parametrization.prepared.serving(originals, parametrization))
        served.append(model.last.weight)
        (standing,) = model.__dict__[ATTRIBUTE].ways
        standing._end()  # as another thread may
        served.append(served[0].hand_over(originals, parametrization))

    model(x, meanwhile)
    assert served[1] is served[2]


def test_a_layer_used_twice_iterates_once():
    model = normalized(TwiceUsed())
    before = state_of(model.first)
    model(torch.randn(3, 6)).sum().backward()
    assert iterations(model.first, before) == 1


def test_a_layer_used_twice_gets_the_gradient_of_both_uses(relative_error):
    model = normalized(TwiceUsed())
    x = torch.randn(3, 6)
    first, last = (step_from(layer, *state_of(layer)) for layer in (model.first, model.last))
    hidden = sum(nn.functional.linear(y, first.weight_sn, model.first.bias) for y in (x, x.relu()))
    output = nn.functional.linear(hidden, last.weight_sn, model.last.bias)
    original = original_of(model.first)
    (expected,) = torch.autograd.grad(output.square().sum(), original)
    model(x).square().sum().backward()
    assert relative_error(original.grad, expected) < 1e-6


def test_an_access_outside_the_forward_iterates():
    model = normalized(Model())
    model(torch.randn(3, 6))
    before = state_of(model.last)
    expected = step_from(model.last, *before).weight_sn
    assert torch.equal(model.last.weight, expected)
    assert model.last.weight is not model.last.weight
    assert iterations(model.last, before) == 3


def test_a_submodule_called_alone_iterates():
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    for _ in range(2):
        assert torch.equal(together.first(x), one_by_one.first(x))
        assert torch.equal(together(x), one_by_one(x))
        assert torch.equal(together.first(x), one_by_one.first(x))
    assert_same_state(together, one_by_one)


def test_nothing_is_left_prepared_after_a_forward():
    model = normalized(Model())
    prepared = []
    model(
        torch.randn(3, 6), lambda: prepared.append(model.last.parametrizations.weight[0].prepared)
    )
    assert prepared[0] is not None
    assert_nothing_is_prepared(model)


def test_a_cached_weight_iterates_once_over_two_forwards():
    model = normalized(Model())
    before = state_of(model.last)
    with parametrize.cached():
        outputs = [model(torch.randn(3, 6)) for _ in range(2)]
    assert iterations(model.last, before) == 1
    sum(output.square().sum() for output in outputs).backward()
    model(torch.randn(3, 6))
    assert iterations(model.last, before) == 2


def test_another_thread_gets_a_weight_of_its_own():
    model = normalized(Model())
    before = state_of(model.last)
    seen = []

    def meanwhile():
        seen.append(model.last.weight)
        thread = threading.Thread(target=lambda: seen.append(model.last.weight))
        thread.start()
        thread.join()
        seen.append(model.last.weight)

    model(torch.randn(3, 6), meanwhile).sum().backward()
    assert seen[0] is seen[2]
    assert seen[1] is not seen[0]
    assert iterations(model.last, before) == 2
    seen[1].sum().backward()


@pytest.mark.parametrize("foreach", [None, False])
def test_weights_on_the_cpu_are_left_to_their_accesses_unless_asked_for(foreach):
    model = normalized(Model(), foreach=foreach)
    before = state_of(model.last)
    seen = []

    def meanwhile():
        seen.append(model.last.parametrizations.weight[0].prepared)
        assert model.last.weight is not model.last.weight

    model(torch.randn(3, 6), meanwhile)
    assert seen == [None]
    assert iterations(model.last, before) == 3


@pytest.mark.parametrize("foreach", ["yes", "auto", 1, 0])
def test_foreach_must_be_true_false_or_none(foreach):
    model = Model()
    with pytest.raises(ValueError, match="foreach"):
        apply_spectral_norm(model, foreach=foreach)
    assert not parametrize.is_parametrized(model.first)
    assert not hooks_of(model)


def test_a_weight_changed_in_place_is_not_served_again():
    class Changing(Model):
        def forward(self, x):
            self.first.weight.mul_(2)
            return self.first.weight

    model = normalized(Changing()).eval()
    expected = model.first.weight
    with pytest.warns(UserWarning, match="changed in place"):
        assert torch.equal(model(torch.randn(3, 6)), expected)


def test_without_grad_it_has_no_graph():
    class Watched(Model):
        def forward(self, x):
            with torch.no_grad():
                self.seen = self.first.weight
            return super().forward(x)

    model = normalized(Watched())
    model(torch.randn(3, 6))
    assert not model.seen.requires_grad
