"""A recomputation inside a backward computes what the forward computed, and iterates not at all."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from whole_models import (
    Model,
    assert_nothing_is_prepared,
    assert_same_gradients,
    assert_same_state,
    iterations,
    normalized,
    state_of,
)


class Checkpointed(Model):
    def __init__(self, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x):
        x = checkpoint(self.first, x, use_reentrant=self.use_reentrant).relu()
        return checkpoint(self.last, x, use_reentrant=self.use_reentrant)


def run_checkpointed(model, x):
    output = model(x)
    before = [state_of(layer) for layer in (model.first, model.last)]
    output.square().sum().backward()
    after = [state_of(layer) for layer in (model.first, model.last)]
    assert all(
        torch.equal(a, b)
        for pairs in zip(before, after, strict=True)
        for a, b in zip(*pairs, strict=True)
    )
    return output


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("foreach", [True, False])
def test_checkpointed_layers_recompute_what_they_computed(use_reentrant, foreach):
    model = normalized(Checkpointed(use_reentrant), foreach=foreach)
    plain = normalized(Model(), foreach=foreach)
    plain.load_state_dict(model.state_dict())
    for _ in range(2):
        x = torch.randn(3, 6)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        model.zero_grad()
        plain.zero_grad()
        output = run_checkpointed(model, inputs[0])
        expected = plain(inputs[1])
        expected.square().sum().backward()
        assert torch.equal(output, expected)
        assert torch.equal(inputs[0].grad, inputs[1].grad)
        assert_same_gradients(model, plain)
        assert_same_state(model, plain)
    assert_nothing_is_prepared(model)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("foreach", [True, False])
def test_a_checkpointed_model_recomputes_what_it_computed(use_reentrant, foreach):
    model = normalized(Model(), foreach=foreach)
    plain = copy.deepcopy(model)
    x = torch.randn(3, 6, requires_grad=True)
    before = state_of(model.last)
    output = checkpoint(model, x, use_reentrant=use_reentrant)
    output.square().sum().backward()
    assert iterations(model.last, before) == 1
    plain(x).square().sum().backward()
    assert_same_gradients(model, plain)
    assert_same_state(model, plain)
    assert_nothing_is_prepared(model)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputation_inside_a_forward_leaves_what_was_prepared_alone(use_reentrant):
    model = normalized(Model())
    x = torch.randn(3, 6, requires_grad=True)
    earlier = checkpoint(
        model.last, torch.randn(3, 8).requires_grad_(), use_reentrant=use_reentrant
    )
    before = state_of(model.last)
    model(x, lambda: earlier.sum().backward()).sum().backward()
    assert iterations(model.last, before) == 1


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_an_evaluated_layer_recomputes_with_averaged_vectors_too(use_reentrant):
    layer = normalized(Model(), foreach=False).first.eval()
    parametrization = layer.parametrizations.weight[0]
    parametrization._u.mul_(0.5)
    parametrization._v.mul_(0.5)
    inputs = [torch.ones(3, 6, requires_grad=True) for _ in range(2)]
    original = layer.parametrizations.weight.original
    grads = []
    for output in (checkpoint(layer, inputs[0], use_reentrant=use_reentrant), layer(inputs[1])):
        layer.zero_grad()
        output.square().sum().backward()
        grads.append(original.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("foreach", [True, False])
def test_two_forwards_in_one_checkpoint(use_reentrant, foreach):
    """As D(real) and D(fake): the second recomputes what the second took."""
    model = normalized(Model(), foreach=foreach)
    plain = copy.deepcopy(model)
    inputs = [torch.randn(3, 6, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())

    def both(each):
        return lambda x: each(x).tanh() + each(2 * x).tanh()

    checkpoint(both(model), inputs[0], use_reentrant=use_reentrant).sum().backward()
    both(plain)(inputs[1]).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert_same_gradients(model, plain)
    assert_same_state(model, plain)


TRANSFORMED = {
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1],
    "vmap": lambda layer, x: torch.func.vmap(layer)(x),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # as torch imports itself
@pytest.mark.parametrize("transform", TRANSFORMED)
@pytest.mark.parametrize("foreach", [True, False])
def test_a_transform_inside_a_checkpoint(transform, foreach):
    class Transformed(Model):
        def forward(self, x):
            return checkpoint(TRANSFORMED[transform], self.last, self.first(x), use_reentrant=False)

    class Plain(Model):
        def forward(self, x):
            return TRANSFORMED[transform](self.last, self.first(x))

    model, plain = (normalized(each, foreach=foreach) for each in (Transformed(), Plain()))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(3, 6)
    for each in (model, plain):
        each(x).square().sum().backward()
    original, reference = (each.last.parametrizations.weight.original for each in (model, plain))
    torch.testing.assert_close(original.grad, reference.grad)
    assert_same_state(model, plain)


@pytest.mark.parametrize("foreach", [True, False])
def test_complex_weights_inside_a_checkpoint(foreach):
    class Layer(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            self.layer = nn.Linear(4, 4, dtype=torch.complex64)
            self.checkpointed = checkpointed

        def forward(self, x):
            return (
                checkpoint(self.layer, x, use_reentrant=False)
                if self.checkpointed
                else self.layer(x)
            )

    model, plain = (normalized(Layer(each), foreach=foreach) for each in (True, False))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(3, 4, dtype=torch.complex64)
    for each in (model, plain):
        each(x).abs().sum().backward()
    assert_same_gradients(model, plain)
