"""Forwards of a model of weight norms, set up once, are as one by one, whatever is changed."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from snorm_triton import apply_weight_norm, remove_weight_norm, weight_norm


def vocoder():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(8, 6, 3, padding=1),
        nn.LeakyReLU(),
        nn.ConvTranspose1d(6, 4, 4, 2, 1),
        nn.LeakyReLU(),
        nn.Conv1d(4, 1, 3),
    )


def pair(backend):
    one_by_one = apply_weight_norm(vocoder(), foreach=False, backend=backend)
    return apply_weight_norm(copy.deepcopy(one_by_one), foreach=True), one_by_one


def g_of(layer):
    return layer.parametrizations.weight.original0


def v_of(layer):
    return layer.parametrizations.weight.original1


def x_of(model):
    return torch.linspace(-1, 1, 80).view(2, 8, 5).to(v_of(model[2]).dtype)


def train(model):
    model(x_of(model)).square().sum().backward()


def assert_same(together, one_by_one):
    parameters = dict(one_by_one.named_parameters())
    assert parameters.keys() == dict(together.named_parameters()).keys()
    for name, parameter in together.named_parameters():
        torch.testing.assert_close(parameter, parameters[name], rtol=0, atol=0)
        torch.testing.assert_close(parameter.grad, parameters[name].grad)
    torch.testing.assert_close(together(x_of(together)), one_by_one(x_of(one_by_one)))


def step(model):
    torch.optim.SGD(model.parameters(), lr=0.01).step()


def fused_step(model):
    torch.optim.Adam(model.parameters(), lr=0.01, fused=True).step()


def set_norms(model):
    with torch.no_grad():
        g_of(model[0]).mul_(2)


def swap_norms(model):
    g_of(model[0]).data = g_of(model[0]).data * 3


def swap_directions(model):
    v_of(model[2]).data = v_of(model[2]).data.cos()


def transpose(model):
    model.zero_grad()
    v = v_of(model[0])
    v.data = v.data.transpose(0, 2).contiguous().transpose(0, 2)


def put_parameter(model):
    model[0].parametrizations.weight.original0 = nn.Parameter(torch.full_like(g_of(model[0]), 2.0))


def put_layer(model):
    torch.manual_seed(1)
    model[4] = weight_norm(nn.Conv1d(4, 1, 3), backend="torch")


def load(model):
    state = {key: value + 0.1 for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def freeze_norms(model):
    g_of(model[2]).requires_grad_(False)


def freeze_all_of_one(model):
    model[2].requires_grad_(False)


def evaluate_one(model):
    model[0].eval()


def widen(model):
    model.double()


def add_hook(model):
    def doubled(module, args, output):
        return 2 * output

    model[0].parametrizations.weight[0].register_forward_hook(doubled)


def stack(model):
    parametrize.register_parametrization(model[0], "weight", nn.Identity())


def take_off(model):
    remove_weight_norm(model[0])


CHANGES = [
    step,
    fused_step,
    set_norms,
    swap_norms,
    swap_directions,
    transpose,
    put_parameter,
    put_layer,
    load,
    freeze_norms,
    freeze_all_of_one,
    evaluate_one,
    widen,
    add_hook,
    stack,
    take_off,
]


@pytest.mark.parametrize("change", CHANGES)
def test_after_any_change_it_is_as_one_by_one(change, backend):
    models = pair(backend)
    for model in models:
        for do in (train, train, change, train, train):
            do(model)
    assert_same(*models)


class Used(nn.Sequential):
    """Forwards take turns in the layers that they use."""

    turns = (5, 1, 3, 5, 1)

    def forward(self, x):
        count, *self.turns = self.turns
        for layer in list(self)[:count]:
            x = layer(x)
        return x


def test_gradients_of_those_that_are_used(backend):
    models = [Used(*each) for each in pair(backend)]
    apply_weight_norm(models[0], foreach=True)
    for model in models:
        for _ in range(4):
            train(model)
    assert_same(*models)


def test_second_derivatives(backend):
    models = pair(backend)
    for model in models:
        for _ in range(3):
            x = x_of(model).requires_grad_()
            (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            model.zero_grad()
            grad.square().sum().backward()
    assert_same(*models)


@pytest.mark.parametrize("changed", [g_of, v_of])
def test_what_was_changed_has_no_gradient(changed, backend):
    model, _ = pair(backend)
    for _ in range(3):
        loss = model(x_of(model)).sum()
    with torch.no_grad():
        changed(model[2]).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_two_forwards_and_one_backward(backend):
    models = pair(backend)
    for model in models:
        train(model)
        model.zero_grad()
        (model(x_of(model)).square().sum() + model(2 * x_of(model)).cos().sum()).backward()
    assert_same(*models)


def test_nothing_is_kept_of_a_model(backend):
    model, _ = pair(backend)
    for _ in range(3):
        train(model)
    held = [weakref.ref(each) for each in (v_of(model[0]), g_of(model[2]))]
    weight = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert [each() for each in (*held, weight)] == [None] * 3
