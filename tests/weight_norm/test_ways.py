"""The ways in which torch runs a weight norm: compiled, exported, transformed, checkpointed."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from snorm_triton import apply_weight_norm, weight_norm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def vocoder():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(8, 6, 3, padding=1), nn.LeakyReLU(), nn.ConvTranspose1d(6, 4, 4, 2, 1)
    )


def torchs():
    model = vocoder()
    for layer in (model[0], model[2]):
        parametrizations.weight_norm(layer)
    return model


def steps(model, x):
    output = model(x)
    return [output, *torch.autograd.grad(output.square().mean(), list(model.parameters()))]


@pytest.mark.parametrize("foreach", [False, True])
def test_compiled_in_one_graph(foreach):
    ours, x = apply_weight_norm(vocoder(), foreach=foreach), torch.randn(2, 8, 5)
    ours(x)
    expected = steps(torchs(), x)
    torch.testing.assert_close(
        steps(torch.compile(ours, fullgraph=True), x), expected, rtol=1e-4, atol=1e-6
    )


def test_exported():
    ours, x = apply_weight_norm(vocoder()).eval(), torch.randn(2, 8, 5)
    program = torch.export.export(ours, (x,))
    torch.testing.assert_close(program.module()(x), torchs()(x))
    traced = torch.jit.trace(ours, x, check_trace=False)
    torch.testing.assert_close(traced(x), torchs()(x))


def test_transforms():
    """Against the formula, for torch's lacks a batching rule and takes norms for constants."""
    ours, x = weight_norm(nn.Linear(3, 2)), torch.randn(5, 3)

    def loss(parameters, each):
        return functional_call(ours, parameters, (each,)).square().sum()

    def plain(parameters, each):
        bias, g, v = parameters.values()
        return nn.functional.linear(each, g * v / v.norm(dim=1, keepdim=True), bias).square().sum()

    def directional(loss, parameters):
        tangents = {key: torch.ones_like(value) for key, value in parameters.items()}
        return jvp(lambda p: loss(p, x), (parameters,), (tangents,))

    parameters = dict(ours.named_parameters())
    for transform in (
        lambda loss, p: grad(loss)(p, x),
        lambda loss, p: vmap(grad(loss), in_dims=(None, 0))(p, x),
        lambda loss, p: jacrev(grad(loss))(p, x),
        directional,
    ):
        torch.testing.assert_close(transform(loss, parameters), transform(plain, parameters))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_activation_checkpoints(foreach, use_reentrant, backend):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = vocoder()

        def forward(self, x):
            return checkpoint(self.model, x, use_reentrant=use_reentrant)

    ours = apply_weight_norm(Checkpointed(), foreach=foreach, backend=backend)
    x = torch.randn(2, 8, 5, requires_grad=True)
    ours(x).square().mean().backward()
    _, *expected = steps(torchs(), x)
    for mine, its in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.grad, its)


@pytest.mark.parametrize("autocast_output", [False, True])
def test_autocast(autocast_output, backend):
    layer = weight_norm(nn.Linear(30, 20), autocast_output=autocast_output, backend=backend)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()  # training has begun
    device = layer.bias.device.type
    with torch.autocast(device, torch.bfloat16):
        weight = layer.weight
        output = layer(torch.randn(4, 30))
    assert weight.dtype == (torch.bfloat16 if autocast_output else torch.float32)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.parametrizations.weight.original0.grad.dtype == torch.float32
    torch.testing.assert_close(weight.float(), layer.weight, rtol=2**-7, atol=1e-3)


def test_the_weights_of_a_model_are_computed_anew_after_a_change(backend):
    model = apply_weight_norm(vocoder(), foreach=True, backend=backend)
    x = torch.randn(2, 8, 5)
    model(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(2)
    assert not torch.equal(model(x), twin(x))
    remade = torchs()
    remade.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), remade(x))


def test_inference_mode(backend):
    model = apply_weight_norm(vocoder(), foreach=True, backend=backend).eval()
    x = torch.randn(2, 8, 5)
    with torch.inference_mode():
        first = model(x)
    torch.testing.assert_close(model(x), first)
    model.train()
    model(x).sum().backward()


def test_gradients_of_a_part(backend):
    """One layer's gradient from the node that all have together, and all of it afterwards."""
    model = apply_weight_norm(vocoder(), foreach=True, backend=backend)
    loss = model(torch.randn(2, 8, 5)).square().mean()
    first = model[0].parametrizations.weight.original1
    (part,) = torch.autograd.grad(loss, first, retain_graph=True)
    loss.backward()
    torch.testing.assert_close(first.grad, part)


def test_frozen_norms(backend):
    layer = weight_norm(nn.Linear(4, 3), backend=backend)
    layer.parametrizations.weight.original0.requires_grad_(False)
    layer(torch.randn(2, 4)).sum().backward()
    assert layer.parametrizations.weight.original0.grad is None
    assert layer.parametrizations.weight.original1.grad is not None


def test_a_selective_checkpoint_after_weights_were_prepared(backend):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = vocoder()

        def forward(self, x):
            save_all = partial(create_selective_checkpoint_contexts, must_save)
            return checkpoint(self.model, x, use_reentrant=False, context_fn=save_all)

    ours = apply_weight_norm(Checkpointed(), foreach=True, backend=backend)
    x = torch.randn(2, 8, 5, requires_grad=True)
    ours(x).square().mean().backward()
    _, *expected = steps(torchs(), x)
    for mine, its in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.grad, its)


def must_save(*args, **kwargs):
    return CheckpointPolicy.MUST_SAVE


def test_a_change_before_a_differentiable_backward_is_an_error(backend):
    layer = weight_norm(nn.Linear(3, 4), dim=1, backend=backend)
    weight = layer.weight
    with torch.no_grad():
        layer.parametrizations.weight.original1.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(
            weight.sum(), layer.parametrizations.weight.original0, create_graph=True
        )


def test_a_model_made_in_inference_mode(backend):
    with torch.inference_mode():
        layer = weight_norm(nn.Linear(3, 3), dim=None, backend=backend)
        assert layer(torch.randn(2, 3)).isfinite().all()
