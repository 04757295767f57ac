"""The ways in which torch runs orthogonal weights: together, compiled, transformed, in training."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from orthogonal_models import assert_orthonormal, moved, network, steps
from snorm_triton import (
    apply_orthogonal,
    orthogonal,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()  # what was compiled for others counts towards a limit


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("foreach", [False, True])
def test_compiled_in_one_graph(foreach, kind):
    ours = moved(apply_orthogonal(network(), orthogonal_map=kind, foreach=foreach))
    x = torch.randn(3, 6)
    expected = steps(ours, x)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(steps(compiled, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_by_inductor():
    ours = moved(apply_orthogonal(network(), orthogonal_map="newton_schulz"))
    x = torch.randn(3, 6)
    expected = steps(ours, x)
    compiled = torch.compile(ours, fullgraph=True)
    torch.testing.assert_close(steps(compiled, x), expected, rtol=1e-4, atol=1e-5)


def test_exported(kind):
    ours = moved(apply_orthogonal(network(), orthogonal_map=kind)).eval()
    x = torch.randn(3, 6)
    program = torch.export.export(ours, (x,))
    torch.testing.assert_close(program.module()(x), ours(x), rtol=1e-4, atol=1e-5)
    traced = torch.jit.trace(ours, x, check_trace=False)
    torch.testing.assert_close(traced(x), ours(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's tril_
def test_transforms(kind):
    layer = moved(orthogonal(nn.Linear(5, 3).double(), orthogonal_map=kind))
    x = torch.randn(4, 5, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters, each):
        return functional_call(layer, parameters, (each,)).square().sum()

    def gradients(each):
        of = torch.autograd.grad(loss(parameters, each), list(parameters.values()))
        return dict(zip(parameters, of, strict=True))

    torch.testing.assert_close(grad(loss)(parameters, x), gradients(x))
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    apart = [gradients(row) for row in x]
    torch.testing.assert_close(each, {key: torch.stack([a[key] for a in apart]) for key in each})
    many = {key: torch.stack([value, 2 * value]) for key, value in parameters.items()}
    assert vmap(loss, in_dims=(0, None))(many, x).shape == (2,)
    tangents = {key: torch.ones_like(value) for key, value in parameters.items()}
    if kind != "householder":  # torch has no forward derivative of its product
        _, along = jvp(lambda p: loss(p, x), (parameters,), (tangents,))
        of = gradients(x)
        torch.testing.assert_close(along, sum(value.sum() for value in of.values()))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_activation_checkpoints(foreach, use_reentrant, kind):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, x):
            return checkpoint(self.model, x, use_reentrant=use_reentrant)

    ours = moved(apply_orthogonal(Checkpointed(), orthogonal_map=kind, foreach=foreach))
    x = torch.randn(2, 6, requires_grad=True)
    ours(x).square().mean().backward()
    _, *expected = steps(ours.model, x)
    for mine, each in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.grad, each)


@pytest.mark.parametrize("autocast_output", [False, True])
def test_autocast_computes_in_float32(autocast_output, kind):
    layer = orthogonal(nn.Linear(30, 20), orthogonal_map=kind, autocast_output=autocast_output)
    moved(layer)
    expected = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.weight
        layer(torch.randn(4, 30)).float().sum().backward()
    assert weight.dtype == (torch.bfloat16 if autocast_output else torch.float32)
    torch.testing.assert_close(weight, expected.to(weight.dtype))
    assert layer.parametrizations.weight.original.grad.dtype == torch.float32


def test_training_keeps_it_orthonormal(kind):
    """With weight decay, which takes the signs of torch's householder away."""
    model = apply_orthogonal(network(), orthogonal_map=kind, foreach=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.5)
    x, target = torch.randn(16, 6), torch.randn(16, 9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for layer in model[::2]:
        assert_orthonormal(layer.weight)


def test_foreach_is_as_one_by_one(kind):
    x = torch.randn(3, 6)
    one_by_one, together = (
        moved(apply_orthogonal(network(), orthogonal_map=kind, foreach=foreach))
        for foreach in (False, True)
    )
    together.load_state_dict(one_by_one.state_dict())
    torch.testing.assert_close(steps(together, x), steps(one_by_one, x))
    together.eval(), one_by_one.eval()
    with torch.no_grad():
        torch.testing.assert_close(together(x), one_by_one(x))
        torch.testing.assert_close(together(x), one_by_one(x))


def test_gradients_of_a_part_and_again():
    model = moved(apply_orthogonal(network(), orthogonal_map="newton_schulz", foreach=True))
    x = torch.randn(3, 6)
    _, *expected = steps(model, x)
    loss = model(x).square().mean()
    first = model[0].parametrizations.weight.original
    (part,) = torch.autograd.grad(loss, first, retain_graph=True)
    loss.backward()
    torch.testing.assert_close(first.grad, part)
    for parameter, each in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, each)


def test_a_change_in_place_of_one_is_none_of_another():
    """Weights that are computed together lie in memory of their own."""
    model = moved(apply_orthogonal(network(), orthogonal_map="newton_schulz", foreach=True))
    handed_out = []

    def change(module, args):
        handed_out.append(model[2].weight)
        with torch.no_grad():
            module.weight.mul_(2)

    model[0].register_forward_pre_hook(change)
    with pytest.warns(UserWarning, match="'0.weight' was changed in place"):
        model(torch.randn(1, 6))
    assert_orthonormal(handed_out[0])


@pytest.mark.parametrize("dim", [None, 0, 1])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 3), (4, 2, 3, 3)])
def test_many_gradients_at_a_time(shape, dim):
    torch.manual_seed(0)
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    orthogonal(module, orthogonal_map="newton_schulz", dim=dim)
    norm, original = module.parametrizations.weight[0], module.parametrizations.weight.original
    each = torch.autograd.functional.jacobian(norm, original.detach(), vectorize=False)
    together = torch.autograd.functional.jacobian(norm, original.detach(), vectorize=True)
    torch.testing.assert_close(together, each)


def test_what_a_gradient_takes_is_given_back_by_the_first():
    layer = orthogonal(nn.Linear(6, 6), orthogonal_map="newton_schulz")
    loss = layer.weight.square().mul(torch.randn(6, 6)).sum()
    node = loss.grad_fn
    while type(node).__name__ != "PolarFactorsBackward":
        node = node.next_functions[0][0]
    loss.backward(retain_graph=True)
    assert node.recorded is None
    original = layer.parametrizations.weight.original
    first = original.grad.clone()
    loss.backward()
    torch.testing.assert_close(original.grad, 2 * first)


def test_a_base_is_loaded_wide():
    saved = {key: value.half() for key, value in orthogonal(nn.Linear(4, 4)).state_dict().items()}
    layer = orthogonal(nn.Linear(4, 4)).half()
    layer.load_state_dict(saved, assign=True)
    assert layer.parametrizations.weight[0].base.dtype == torch.float32
