"""Weight norm, of torch.nn.utils.weight_norm and its parametrization."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import snorm_triton

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def images():
    return torch.randn(5, 2, 3, 3)


def model_of(wn):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4))
    wn.weight_norm(model[0]), wn.weight_norm(model[2])
    return model


def parameters_of(wn, layer):
    return [layer.get_parameter(name) for name in wn.keys]


@pytest.mark.promise("Weight, gradients and norms of any `dim`")
@pytest.mark.parametrize("dim", [0, 1, -2, None])
def test_numbers(wn, dim):
    layer = nn.Conv1d(4, 3, 5)
    before = layer.weight.detach().clone()
    wn.weight_norm(layer, dim=dim)
    g, v = parameters_of(wn, layer)
    others = [axis for axis in range(3) if dim is None or axis != dim % 3]

    def norms_of(weight):
        return torch.linalg.vector_norm(weight, dim=others, keepdim=dim is not None)

    torch.testing.assert_close(g.detach(), norms_of(before))
    torch.testing.assert_close(wn.weight(layer).detach(), before)
    grads = torch.autograd.grad(wn.weight(layer).square().sum(), [g, v])
    expected = torch.autograd.grad((g * v / norms_of(v)).square().sum(), [g, v])
    torch.testing.assert_close(grads, expected)


@pytest.mark.promise("A row of zeros", torch=("NaN", AssertionError))
def test_row_of_zeros(wn):
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[1] = 0
    wn.weight_norm(layer)
    wn.weight(layer).square().sum().backward()
    assert wn.weight(layer).isfinite().all()
    assert all(p.grad.isfinite().all() for p in parameters_of(wn, layer))


@pytest.mark.promise(
    "Second derivatives, as of a gradient penalty",
    torch=("norms are constants to them", AssertionError),
)
def test_second_derivatives(wn):
    layer = wn.weight_norm(nn.Linear(4, 3).double())
    inputs = parameters_of(wn, layer)
    grads = torch.autograd.grad(wn.weight(layer).pow(3).sum(), inputs, create_graph=True)
    seconds = torch.autograd.grad(sum(each.square().sum() for each in grads), inputs)
    g, v = inputs
    weight = g * v / v.norm(dim=1, keepdim=True)
    grads = torch.autograd.grad(weight.pow(3).sum(), inputs, create_graph=True)
    expected = torch.autograd.grad(sum(each.square().sum() for each in grads), inputs)
    torch.testing.assert_close(seconds, expected)


@pytest.mark.promise(
    "`nn.init` of the weight after wrapping", torch=("lost, in silence", AssertionError)
)
def test_initialization(wn):
    layer = wn.weight_norm(nn.Linear(400, 300))
    nn.init.normal_(layer.weight, 0, 0.02)
    assert wn.weight(layer).std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.promise(
    "`module.weight.data.normal_()` after wrapping", torch=("lost", AssertionError)
)
def test_initialization_of_data(wn):
    layer = wn.weight_norm(nn.Linear(400, 300))
    layer.weight.data.normal_(0, 0.02)
    assert wn.weight(layer).std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.promise(
    "A lazy module", hook=("refused", ValueError), parametrization=("refused", RuntimeError)
)
def test_lazy(wn):
    layer = wn.weight_norm(nn.LazyLinear(3))
    layer(torch.randn(2, 5))
    assert len(parameters_of(wn, layer)) == 2


@pytest.mark.promise(
    "`copy.deepcopy` of a model, after a forward in training", hook=("refused", RuntimeError)
)
def test_deepcopy(wn):
    model, x = model_of(wn), images()
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))


@pytest.mark.promise("`pickle` of a model", parametrization=("refused", RuntimeError))
def test_pickle(wn):
    model, x = model_of(wn), images()
    twin = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(twin(x), model(x))


@pytest.mark.promise(
    "Loading a checkpoint of torch's hook",
    hook="it is its own",
)
def test_older_checkpoints(wn):
    old = nn.utils.weight_norm(nn.Linear(4, 3))
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    layer = wn.weight_norm(nn.Linear(4, 3))
    layer.load_state_dict(torch.load(file))
    x = torch.randn(2, 4)
    torch.testing.assert_close(layer(x), old(x))


@pytest.mark.promise(
    "`reset_parameters()` of the module", torch=("the weight stays what it was", AssertionError)
)
def test_reset_parameters(wn):
    layer = wn.weight_norm(nn.Linear(4, 3))
    before = wn.weight(layer).detach().clone()
    layer.reset_parameters()
    assert not torch.equal(wn.weight(layer), before)


@pytest.mark.promise("Weights near 1e-25 and 1e25", torch=("NaN or zero", AssertionError))
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_extreme_scales(wn, scale):
    layer = wn.weight_norm(nn.Linear(6, 4))
    expected = wn.weight(layer).detach().clone()
    with torch.no_grad():
        parameters_of(wn, layer)[1].mul_(scale)
    torch.testing.assert_close(wn.weight(layer).detach(), expected)


@pytest.mark.promise("`torch.compile(fullgraph=True)`")
def test_compiled(wn):
    model, x = model_of(wn), images()
    expected = model(x)
    torch.testing.assert_close(
        torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected
    )


@pytest.mark.promise("Activation checkpoints around the model")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoints(wn, use_reentrant):
    model, x = model_of(wn), images().requires_grad_()
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


@pytest.mark.promise(
    "Gradients of each sample, `vmap(grad(...))`",
    hook="not tried",
    parametrization="slow: no batching rule",
)
def test_gradients_of_each_sample(wn):
    layer = wn.weight_norm(nn.Linear(4, 3))
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).square().sum()

    x = torch.randn(6, 4)
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for name, whole in grad(loss)(parameters, x).items():
        torch.testing.assert_close(each[name].sum(0), whole)


@pytest.mark.promise(
    "An evaluation of an unchanged weight computes nothing",
    torch=("computed anew", AssertionError),
)
def test_evaluation_computed_once(wn):
    layer = wn.weight_norm(nn.Linear(4, 3)).eval()
    with torch.no_grad():
        first = wn.weight(layer)
        assert wn.weight(layer).data_ptr() == first.data_ptr()


@pytest.mark.promise("`snorm_triton.fold(model)`")
def test_fold(wn):
    model, x = model_of(wn).eval(), images()
    expected = model(x)
    assert snorm_triton.fold(model) == ["0.weight", "2.weight"]
    torch.testing.assert_close(model(x), expected)
