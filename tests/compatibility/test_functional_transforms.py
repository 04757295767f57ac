"""Functional calls and the transforms of torch.func."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap

# torch scripts its own decompositions at the first forward derivative.
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit")
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def model_of(sn, training):
    model = sn.apply(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4)))
    if not training:  # so it has been trained: torch's hook starts from any u and v
        with torch.no_grad():
            for _ in range(20):
                model(images())
    return model.train(training)


def images(n=5):
    return torch.randn(n, 2, 3, 3)


def state_of(model):
    return dict(model.named_parameters()), dict(model.named_buffers())


def loss_of(model):
    return lambda *state, x: functional_call(model, state, (x,)).square().sum()


def gradients(model, x):
    """By autograd, and the buffers after it."""
    twin = copy.deepcopy(model)
    parameters, buffers = state_of(twin)
    found = torch.autograd.grad(twin(x).square().sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True)), buffers


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], msg=name)


@MODES
@pytest.mark.promise("`functional_call`, with parameters and buffers of the caller's")
def test_functional_call(sn, training):
    model = model_of(sn, training)
    parameters, buffers = state_of(copy.deepcopy(model))
    _, before = state_of(copy.deepcopy(model))
    x = images()
    expected, after = gradients(model, x)
    output = functional_call(model, (parameters, buffers), (x,))
    found = torch.autograd.grad(output.square().sum(), list(parameters.values()))
    assert_close(dict(zip(parameters, found, strict=True)), expected)
    assert_close(buffers, after)
    assert_close(state_of(model)[1], before)


@MODES
@pytest.mark.parametrize("captured", [True, False], ids=["captured", "passed"])
@pytest.mark.promise("`torch.func.grad`, with the buffers captured or passed")
def test_grad(sn, training, captured):
    model = model_of(sn, training)
    parameters, buffers = state_of(model)
    x = images()
    expected, after = gradients(model, x)
    state = (parameters,) if captured else (parameters, buffers)
    assert_close(grad(loss_of(model))(*state, x=x), expected)
    assert_close(buffers, after)


@MODES
@pytest.mark.promise("`vmap` of `grad`: the gradients of each sample")
def test_gradients_of_each_sample(sn, training):
    model = model_of(sn, training)
    parameters, buffers = state_of(model)
    x = images()
    expected = [gradients(model, x[i : i + 1])[0] for i in range(len(x))]
    _, after = gradients(model, x)
    per_sample = vmap(grad(lambda p, x: loss_of(model)(p, x=x[None])), (None, 0))(parameters, x)
    for i, each in enumerate(expected):
        assert_close({name: value[i] for name, value in per_sample.items()}, each)
    assert_close(buffers, after)


def ensemble(sn, training):
    models = [model_of(sn, training) for _ in range(3)]
    x = images()
    expected = [copy.deepcopy(model)(x) for model in models]
    parameters, buffers = stack_module_state(models)
    before = {name: value.clone() for name, value in buffers.items()}
    base = models[0]
    found = vmap(lambda *state: functional_call(base, state, (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack(expected))
    return before, buffers


@pytest.mark.promise("`vmap` over the stacked weights of several models, in evaluation")
def test_ensemble_in_evaluation(sn):
    before, after = ensemble(sn, training=False)
    vectors = {name: value for name, value in after.items() if not name.endswith("_sigma")}
    assert_close(vectors, {name: before[name] for name in vectors})


@pytest.mark.promise(
    "`vmap` over the stacked weights of several models, in training",
    torch=("no batching rule", RuntimeError),
)
def test_ensemble_in_training(sn):
    before, after = ensemble(sn, training=True)
    assert not any(torch.equal(after[name], before[name]) for name in after)


@forward_mode
@pytest.mark.promise(
    "`torch.func.hessian` in training",
    torch=("no forward derivative", NotImplementedError),
)
def test_hessian(sn):
    layer = sn.spectral_norm(nn.Linear(3, 2))
    x = torch.randn(4, 3)
    for _ in range(100):  # to where further iterations leave u and v
        sn.weight(layer)
    u, v = (vector.clone() for vector in sn.vectors(layer))

    def loss(weight):
        return loss_of(layer)({sn.keys.original: weight}, x=x)

    def written_out(weight):
        return nn.functional.linear(x, weight / (u @ weight @ v), layer.bias).square().sum()

    weight = sn.original(layer).detach()
    expected = torch.autograd.functional.hessian(written_out, weight)
    torch.testing.assert_close(hessian(loss)(weight), expected)


def along_a_tangent(sn, training, functional):
    model = model_of(sn, training)
    parameters, _ = state_of(copy.deepcopy(model))
    tangents = {name: torch.randn_like(value) for name, value in parameters.items()}
    x = images()
    expected, _ = gradients(model, x)
    if functional:
        _, derivative = jvp(lambda p: loss_of(model)(p, x=x), (parameters,), (tangents,))
    else:
        with forward_ad.dual_level():
            dual = {k: forward_ad.make_dual(v, tangents[k]) for k, v in parameters.items()}
            derivative = forward_ad.unpack_dual(loss_of(model)(dual, x=x)).tangent
    along = sum((expected[name] * tangents[name]).sum() for name in expected)
    torch.testing.assert_close(derivative, along)


WAYS = pytest.mark.parametrize("functional", [True, False], ids=["jvp", "dual"])


@forward_mode
@WAYS
@pytest.mark.promise("Forward derivatives in evaluation: `torch.func.jvp` and `forward_ad`")
def test_forward_derivatives_in_evaluation(sn, functional):
    along_a_tangent(sn, training=False, functional=functional)


@forward_mode
@WAYS
@pytest.mark.promise(
    "Forward derivatives in training: `torch.func.jvp` and `forward_ad`",
    torch=("no forward derivative", NotImplementedError),
)
def test_forward_derivatives_in_training(sn, functional):
    along_a_tangent(sn, training=True, functional=functional)
