"""A change in place of a weight that was handed out is told; nothing else is taken for one."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn.utils import parametrize

from snorm_triton import apply_spectral_norm, remove_spectral_norm
from snorm_triton import spectral_norm as fresh_spectral_norm

LOST = "changed in place where it was handed out"


def spectral_norm(module, name="weight"):
    """Of a module in training: before that, what is written stays, see test_first_forward.py."""
    fresh_spectral_norm(module, name)
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    return module


def is_told(layer, name="weight"):
    with pytest.warns(UserWarning, match=LOST) as caught:
        getattr(layer, name)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    return str(caught[0].message)


def test_it_names_the_parameter():
    layer = spectral_norm(nn.LSTMCell(4, 3), "weight_hh")
    nn.init.orthogonal_(layer.weight_hh)
    message = is_told(layer, "weight_hh")
    assert "shape (12, 3)" in message
    assert "module.parametrizations.weight_hh.original" in message


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_in_any_mode(mode, training):
    layer = spectral_norm(nn.Linear(4, 3)).train(training)
    with mode():
        weight = layer.weight
    layer.bias  # noqa: B018
    weight.detach().zero_()
    is_told(layer)


def test_where_normalizations_are_stacked():
    layer = spectral_norm(spectral_norm(nn.Linear(4, 3)))
    nn.init.zeros_(layer.weight)
    is_told(layer)


def test_where_weights_are_prepared_together():
    model = apply_spectral_norm(nn.Sequential(nn.Linear(4, 3)), foreach=True)
    layer = model[0]

    def change(module, args, output):
        module.weight.detach().zero_()

    handle = layer.register_forward_hook(change)
    model(torch.randn(2, 4))
    handle.remove()
    is_told(layer)


def test_where_it_was_cached():
    layer = spectral_norm(nn.Linear(4, 3))
    with parametrize.cached():
        layer.weight.detach().zero_()
        assert (layer.weight == 0).all()  # the cache has it: not lost yet
    is_told(layer)


def test_as_an_error_it_is_raised_once():
    layer = spectral_norm(nn.Linear(4, 3))
    nn.init.zeros_(layer.weight)
    with pytest.raises(UserWarning, match=LOST):
        layer(torch.randn(2, 4))
    layer(torch.randn(2, 4))


def test_a_backward_through_it_is_refused_as_ever():
    layer = spectral_norm(nn.Linear(4, 3))
    weight = layer.weight
    output = nn.functional.linear(torch.randn(2, 4, requires_grad=True), weight)
    weight.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_where_the_parameter_is_held_as_several():
    """As by weight_norm below it: there is no one original to change."""
    layer = spectral_norm(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    nn.init.zeros_(layer.weight)
    with pytest.warns(UserWarning, match="assign module.weight = tensor$"):
        assert (layer.weight != 0).any()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_training_is_no_such_change(foreach, optimizer):
    model = apply_spectral_norm(
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(True), nn.Conv2d(3, 1, 2)),
        foreach=foreach,
    )
    stepper = optimizer(model.parameters(), lr=0.1)
    for _ in range(3):
        stepper.zero_grad()
        model(torch.randn(2, 2, 4, 4)).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
        with torch.no_grad():
            model.eval()(torch.randn(2, 2, 4, 4))
        with torch.inference_mode():
            model(torch.randn(2, 2, 4, 4))
        model.train()


def test_nor_is_what_is_done_to_a_copy_of_it():
    layer = spectral_norm(nn.Linear(4, 3))
    layer.weight.clone().mul_(2)
    (layer.weight * 2).add_(1)
    layer.weight.data.mul_(2)  # invisible
    layer.weight  # noqa: B018


def test_nor_inside_a_transform():
    layer = spectral_norm(nn.Linear(4, 3))
    x = torch.randn(2, 4)
    for _ in range(2):
        grad(lambda p: functional_call(layer, p, (x,)).sum())(dict(layer.named_parameters()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_told_of_its_own_changes_alone(duplicate):
    layer = spectral_norm(nn.Linear(4, 3))
    nn.init.zeros_(layer.weight)
    twin = duplicate(layer)
    twin.weight  # noqa: B018
    is_told(layer)
    nn.init.zeros_(twin.weight)
    is_told(twin)


@pytest.mark.parametrize("leave_parametrized", [True, False])
def test_removal_tells_too(leave_parametrized):
    layer = spectral_norm(nn.Linear(4, 3))
    nn.init.zeros_(layer.weight)
    if leave_parametrized:
        with pytest.warns(UserWarning, match=LOST):
            remove_spectral_norm(layer)
    else:
        remove_spectral_norm(layer, leave_parametrized=False)
    assert (layer.weight != 0).all()


def test_a_module_that_changes_what_it_gets_is_left_alone():
    embedding = spectral_norm(nn.Embedding(5, 3, max_norm=0.1))
    for _ in range(2):
        embedding(torch.arange(5))
    lstm = spectral_norm(nn.LSTM(4, 3), "weight_hh_l0")
    lstm.weight_hh_l0.detach().zero_()
    lstm.weight_hh_l0  # noqa: B018


def test_moves_between_devices_and_dtypes():
    layer = spectral_norm(nn.Linear(4, 3))
    layer.weight  # noqa: B018
    for move in (lambda m: m.double(), lambda m: m.to("meta"), lambda m: m.to_empty(device="cpu")):
        move(layer)
        layer.weight  # noqa: B018


def test_no_memory_and_no_graph_is_kept():
    layer = spectral_norm(nn.Linear(128, 64))
    weight = layer.weight
    node, storage = weakref.ref(weight), weakref.ref(weight.untyped_storage())
    del weight
    gc.collect()
    assert node() is None
    assert storage() is None
    counter, _ = layer.parametrizations.weight._handed_out
    assert counter.untyped_storage().nbytes() == 0
    assert counter.grad_fn is None
