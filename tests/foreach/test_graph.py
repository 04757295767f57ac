"""The nodes of the graph that a model's weights share, and the backwards that pass them."""

import pytest
import torch
from torch import nn

from whole_models import (
    Model,
    assert_alike,
    discriminator,
    images,
    normalized,
    original_of,
    pair,
    scale_in_place,
)


class TwoHeads(nn.Module):
    """Two outputs that share no layer."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(6, 5)
        self.right = nn.Linear(6, 5)

    def forward(self, x):
        return self.left(x), self.right(x)


either_way = pytest.mark.parametrize("foreach", [True, False])


def nodes_of(model, x):
    nodes = []
    model(x, lambda: nodes.extend([model.first.weight.grad_fn, model.last.weight.grad_fn]))
    return nodes


@pytest.mark.parametrize(("bucket_bytes", "nodes"), [(1, 2), (200, 2), (25 * 2**20, 1)])
def test_the_weights_of_a_bucket_share_a_node(monkeypatch, bucket_bytes, nodes):
    monkeypatch.setattr("snorm_triton.ops.autograd.BUCKET_BYTES", bucket_bytes)
    first, last = nodes_of(normalized(Model()), torch.randn(3, 6))
    assert first is not None
    assert len({first, last}) == nodes


@pytest.mark.parametrize("bucket_bytes", [1, 300, 600])
def test_the_size_of_a_bucket_does_not_change_gradients(monkeypatch, bucket_bytes):
    together, one_by_one = pair(discriminator())
    monkeypatch.setattr("snorm_triton.ops.autograd.BUCKET_BYTES", bucket_bytes)
    for _ in range(2):
        assert_alike(together, one_by_one, images())


def test_a_graph_that_is_retained_gives_the_same_twice():
    model = normalized(Model())
    loss = model(torch.randn(3, 6)).square().sum()
    parameters = list(model.parameters())
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    twice = torch.autograd.grad(loss, parameters)
    assert all(map(torch.equal, once, twice))


def test_an_unused_layer_gets_no_gradient():
    model = Model()
    model.unused = nn.Linear(4, 4)
    normalized(model)
    model(torch.randn(3, 6)).sum().backward()
    assert original_of(model.unused).grad is None
    assert original_of(model.first).grad is not None


@either_way
def test_outputs_that_share_no_layer_may_be_differentiated_one_after_the_other(foreach):
    model = normalized(TwoHeads(), foreach=foreach)
    for output in model(torch.randn(3, 6)):
        output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@either_way
def test_a_step_on_one_output_leaves_the_gradient_of_another(foreach):
    model = normalized(TwoHeads(), foreach=foreach)
    left, right = model(torch.randn(3, 6))
    left.square().sum().backward()
    torch.optim.SGD(model.left.parameters(), lr=0.1).step()
    right.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@either_way
def test_a_weight_changed_before_its_backward_is_refused(foreach):
    model = normalized(Model(), foreach=foreach)
    output = model(torch.randn(3, 6))
    scale_in_place(model.first)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
