"""A model that changes after forwards that were prepared alike is normalized as one by one."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from snorm_triton import remove_spectral_norm, spectral_norm
from whole_models import Model, assert_same_gradients, assert_same_state, normalized, original_of


def train(model, x):
    model(x).square().sum().backward()


def assert_alike_after(change, **options):
    """Both ways compute the same, bit for bit, before and after a change of the model."""
    models = []
    for foreach in (True, False):
        torch.manual_seed(0)
        models.append(normalized(Model(), foreach, **options))
    together, one_by_one = models
    x = torch.randn(3, 6)
    steps = [train, train, lambda model, x: change(model), train, train]
    for do in steps:
        for model in models:
            do(model, x)
    assert_same_state(together, one_by_one)
    assert_same_gradients(together, one_by_one)


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()


def swap_data(model):
    original_of(model.first).data = original_of(model.first).data * 1.5


def swap_data_back(model):
    weight = original_of(model.first)
    before = weight.data
    weight.data = before * 2
    train(model, torch.ones(3, 6))
    weight.data = before


def transpose(model):
    model.zero_grad()
    with torch.no_grad():
        original_of(model.first).data = original_of(model.first).data.t().contiguous().t()


def put_parameter(model):
    model.first.parametrizations.weight.original = nn.Parameter(torch.ones(8, 6).cumsum(1))


def put_layer(model):
    torch.manual_seed(0)
    model.last = spectral_norm(nn.Linear(8, 5))


def put_buffer(model):
    parametrization = model.first.parametrizations.weight[0]
    parametrization._u = torch.ones_like(parametrization._u) / 8**0.5


def load(model):
    state = {key: value + 0.1 for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def freeze(model):
    original_of(model.first).requires_grad_(False)


def evaluate_one(model):
    model.last.eval()


def widen(model):
    model.double().float()


def add_hook(model):

    def hook(module, args, output):
        return 2 * output

    model.first.parametrizations.weight[0].register_forward_hook(hook)


def stack(model):
    parametrize.register_parametrization(model.first, "weight", nn.Identity())


def unnormalize(model):
    remove_spectral_norm(model.first)


CHANGES = [
    step,
    swap_data,
    swap_data_back,
    transpose,
    put_parameter,
    put_layer,
    put_buffer,
    load,
    freeze,
    evaluate_one,
    widen,
    add_hook,
    stack,
    unnormalize,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("policy", ["access", "update"])
def test_after_any_change_it_is_as_one_by_one(change, policy):
    assert_alike_after(change, power_iter=policy)
