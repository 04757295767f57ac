"""Training a model normalized together is training it one by one."""

import pytest
import torch
from torch import nn

from whole_models import (
    OPTIMIZERS,
    Model,
    assert_nothing_is_prepared,
    assert_same_gradients,
    assert_same_state,
    discriminator,
    images,
    original_of,
    pair,
)


def hinge(real, fake):
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_is_the_same_to_the_bit_as_one_by_one(optimizer):
    together, one_by_one = pair(discriminator())
    optimizers = [optimizer(model.parameters()) for model in (together, one_by_one)]
    for _ in range(4):
        real, fake = images(), images()
        losses = []
        for model, each in zip((together, one_by_one), optimizers, strict=True):
            each.zero_grad()
            losses.append(hinge(model(real), model(fake)))
            losses[-1].backward()
        assert torch.equal(*losses)
        assert_same_gradients(together, one_by_one)
        for each in optimizers:
            each.step()
        assert_same_state(together, one_by_one)


def test_the_input_gets_the_same_gradient():
    together, one_by_one = pair(discriminator())
    x = images().requires_grad_()
    grads = [torch.autograd.grad(model(x).sum(), x)[0] for model in (together, one_by_one)]
    assert torch.equal(*grads)


def test_each_backend_trains_as_one_by_one(backend, relative_error):
    together, one_by_one = pair(discriminator(), backend=backend)
    for _ in range(2):
        real, fake = images(), images()
        for model in (together, one_by_one):
            model.zero_grad()
            hinge(model(real), model(fake)).backward()
        for ours, theirs in zip(together.parameters(), one_by_one.parameters(), strict=True):
            assert relative_error(ours.grad, theirs.grad) < 1e-5
        for key, value in together.state_dict().items():
            assert relative_error(value, one_by_one.state_dict()[key]) < 1e-5


class Weights(nn.Module):
    """The sum of all cubed weights, of rows of every kind: long ones, runs, permuted columns."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(136, 35),
                nn.Linear(35, 3),
                nn.Conv2d(8, 3, 3).to(memory_format=torch.channels_last),
                nn.ConvTranspose2d(5, 9, 4),
                nn.ConvTranspose2d(3, 4, 3),
            ]
        )

    def forward(self):
        return sum(layer.weight.pow(3).sum() for layer in self.layers)


@pytest.mark.parametrize("n_power_iterations", [1, 3])
def test_every_kind_of_row_comes_out_as_one_by_one(backend, n_power_iterations, relative_error):
    options = {"backend": backend, "n_power_iterations": n_power_iterations}
    together, one_by_one = pair(Weights(), **options)
    sums = [model() for model in (together, one_by_one)]
    assert relative_error(*sums) < 1e-5
    for each in sums:
        each.backward()
    for ours, theirs in zip(together.layers, one_by_one.layers, strict=True):
        grads = [x.parametrizations.weight.original.grad for x in (ours, theirs)]
        assert relative_error(*grads) < 1e-5
    for key, value in together.state_dict().items():
        assert relative_error(value, one_by_one.state_dict()[key]) < 1e-5


def test_accesses_between_a_forward_and_its_backward_change_nothing():
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    for model in (together, one_by_one):
        loss = model(x).square().sum()
        model.last.weight, model.first(x)
        loss.backward()
    assert_same_gradients(together, one_by_one)
    assert_same_state(together, one_by_one)


def test_a_gradient_penalty_is_the_same_as_one_by_one():
    together, one_by_one = pair(discriminator())
    x = images()
    for model in (together, one_by_one):
        inputs = x.clone().requires_grad_()
        output = model(inputs)
        (grad,) = torch.autograd.grad(output.sum(), inputs, create_graph=True)
        penalty = (grad.flatten(1).norm(dim=1) - 1).square().mean()
        (penalty + output.square().mean()).backward()
    assert_same_gradients(together, one_by_one)
    assert_same_state(together, one_by_one)


def test_a_penalty_on_the_gradient_of_the_weights_is_the_same_as_one_by_one():
    together, one_by_one = pair(discriminator())
    x = images()
    for model in (together, one_by_one):
        loss = model(x).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        sum(grad.square().sum() for grad in grads).backward()
    assert_same_gradients(together, one_by_one)


def test_substituted_weights_get_the_gradients():
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    name = "first.parametrizations.weight.original"
    weight = torch.randn(8, 6)
    grads = []
    for model in (together, one_by_one):
        substitute = weight.clone().requires_grad_()
        torch.func.functional_call(model, {name: substitute}, x).square().sum().backward()
        grads.append(substitute.grad)
        assert original_of(model.first).grad is None
    assert torch.equal(*grads)
    assert_same_state(together, one_by_one)
    assert_nothing_is_prepared(together)
