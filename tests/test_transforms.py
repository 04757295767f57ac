"""Inside a transform of torch.func a weight is normalized as outside it."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrize

from snorm_triton import apply_spectral_norm, spectral_norm
from snorm_triton.functional import spectral_normalize

DTYPES = [torch.float64, torch.bfloat16, torch.float16, torch.complex64]


def original_and_buffers(layer, name="weight"):
    parametrizations = layer.parametrizations[name]
    return parametrizations.original, dict(parametrizations.named_buffers())


def by_autograd(layer, cotangent, name="weight"):
    """The gradient of <weight, cotangent>, and the buffers after it, of a copy."""
    twin = copy.deepcopy(layer)
    original, buffers = original_and_buffers(twin, name)
    (found,) = torch.autograd.grad((getattr(twin, name) * cotangent).real.sum(), original)
    return found, buffers


def by_transform(layer, cotangent, name="weight"):
    key = f"parametrizations.{name}.original"

    def inner(original):
        with nn.utils.stateless._reparametrize_module(layer, {key: original}):
            return (getattr(layer, name) * cotangent).real.sum()

    original, buffers = original_and_buffers(layer, name)
    return grad(inner)(original.detach()), buffers


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0])
    for name, buffer in expected[1].items():
        torch.testing.assert_close(found[1][name], buffer, msg=name)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradient_and_state(layer_kind, training):
    layer = spectral_norm(layer_kind.make(), layer_kind.parameter).train(training)
    name = layer_kind.parameter
    cotangent = torch.randn(original_and_buffers(layer, name)[0].shape)
    expected = by_autograd(layer, cotangent, name)
    assert_same(by_transform(layer, cotangent, name), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype(dtype):
    layer = spectral_norm(nn.Linear(6, 4, dtype=dtype))
    cotangent = torch.randn(4, 6, dtype=dtype)
    assert_same(by_transform(layer, cotangent), by_autograd(layer, cotangent))


def test_one_dimension():
    layer = spectral_norm(nn.Linear(6, 4), "bias")
    cotangent = torch.randn(4)
    with torch.no_grad():
        layer.parametrizations.bias.original.mul_(3)
    expected = by_autograd(layer, cotangent, "bias")
    assert_same(by_transform(layer, cotangent, "bias"), expected)


def test_stacked():
    layer = spectral_norm(spectral_norm(nn.Linear(6, 4)), n_power_iterations=2)
    cotangent = torch.randn(4, 6)
    assert_same(by_transform(layer, cotangent), by_autograd(layer, cotangent))


def test_zero_weight():
    layer = spectral_norm(nn.Linear(6, 4))
    nn.init.zeros_(layer.parametrizations.weight.original)
    cotangent = torch.randn(4, 6)
    found, _ = by_transform(layer, cotangent)
    assert torch.equal(found, cotangent)


def test_autocast_leaves_the_estimate_alone():
    layer = spectral_norm(nn.Linear(6, 4))
    cotangent = torch.randn(4, 6)
    expected = by_autograd(layer, cotangent)
    with torch.autocast("cpu", torch.bfloat16):
        found = by_transform(layer, cotangent)
    assert found[1]["0._u"].dtype == torch.float32
    assert_same(found, expected)


def test_cached():
    layer = spectral_norm(nn.Linear(6, 4))
    x = torch.randn(5, 6)
    expected = copy.deepcopy(layer)(x)
    with parametrize.cached():
        torch.testing.assert_close(vmap(lambda row: layer(row) + 0 * layer(row))(x), expected)


def test_a_model_normalized_together():
    model = apply_spectral_norm(
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), foreach=True, n_power_iterations=2
    )
    twin = copy.deepcopy(model)
    x = torch.randn(4, 6)
    twin(x).square().sum().backward()
    found = grad(lambda p: functional_call(model, p, (x,)).square().sum())(
        dict(model.named_parameters())
    )
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_a_state_that_samples_share_is_left_where_they_differ():
    layer = spectral_norm(nn.Linear(6, 4))
    _, buffers = original_and_buffers(layer)
    before = copy.deepcopy(buffers)
    weights = torch.randn(3, 4, 6)
    normalized = vmap(
        lambda weight: functional_call(
            layer, {"parametrizations.weight.original": weight}, (torch.eye(6),)
        )
    )(weights)
    assert normalized.shape == (3, 6, 4)
    for name, buffer in buffers.items():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("axes", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_state_of_each_sample_is_written_wherever_its_axes_are(axes):
    """Two nested vmaps, and a gradient outside and inside them."""
    layer = spectral_norm(nn.Linear(6, 4))
    weight_axis, buffer_axis = axes
    weights = torch.randn(3, 2, 4, 6)
    key = "parametrizations.weight"
    buffers = {
        f"{key}.0._u": torch.randn(3, 2, 4),
        f"{key}.0._v": torch.randn(3, 2, 6),
        f"{key}.0._sigma": torch.zeros(3, 2),
    }
    expected = {name: value.clone() for name, value in buffers.items()}
    for i in range(3):
        for j in range(2):
            state = {name: value[i, j] for name, value in expected.items()}
            state[f"{key}.original"] = weights[i, j]
            functional_call(layer, state, (torch.eye(6),))

    def sample(weight, *values):
        state = dict(zip(buffers, values, strict=True))

        def total(weight):
            arguments = {f"{key}.original": weight, **state}
            return functional_call(layer, arguments, (torch.eye(6),)).sum()

        return grad(total)(weight).sum()

    outer_axes = (weight_axis, *(buffer_axis,) * 3)

    def all_samples(weights):
        arranged = [value.transpose(0, buffer_axis) for value in buffers.values()]
        samples = vmap(vmap(sample), outer_axes)
        return samples(weights.transpose(0, weight_axis), *arranged).sum()

    grad(all_samples)(weights)
    for name, value in expected.items():
        torch.testing.assert_close(buffers[name], value, msg=name)


# The compiler breaks its graph in the normalization, and reads .grad of what it goes on with.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_transform_that_is_compiled(training):
    layer = spectral_norm(nn.Linear(6, 4)).train(training)
    cotangent = torch.randn(4, 6)
    expected = by_autograd(layer, cotangent)
    x = torch.eye(6)
    key = "parametrizations.weight.original"

    def inner(original):
        return (functional_call(layer, {key: original}, (x,)).T * cotangent).sum()

    original, buffers = original_and_buffers(layer)
    found = torch.compile(grad(inner), backend="aot_eager")(original.detach())
    assert_same((found, buffers), expected)


def test_once_for_each_update():
    layer = spectral_norm(nn.Linear(6, 4), power_iter="update")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    cotangent = torch.randn(4, 6)
    original, buffers = original_and_buffers(layer)
    # Where the weight is the parameter itself, nothing changes until the next step.
    key = "parametrizations.weight.original"

    def inner(parameters):
        return (functional_call(layer, parameters, (torch.eye(6),)).T * cotangent).sum()

    states = []
    for step in range(2):
        for _ in range(2):
            grad(inner)({key: original})
            states.append(buffers["0._u"].clone())
        if step == 0:
            original.grad = torch.randn_like(original)
            optimizer.step()
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    assert torch.equal(states[2], states[3])


def test_the_function():
    """spectral_normalize itself: both of its differentiable results, and samples of a vmap."""
    weight = torch.randn(4, 3, requires_grad=True)
    u, v = torch.randn(4), torch.randn(3)
    for result in ("weight_sn", "sigma"):

        def square(weight, result=result):
            return getattr(spectral_normalize(weight, u, v), result).square().sum()

        (expected,) = torch.autograd.grad(square(weight), weight)
        torch.testing.assert_close(grad(square)(weight.detach()), expected)
    weights = torch.randn(5, 4, 3)
    together = vmap(lambda weight: spectral_normalize(weight, u, v).weight_sn)(weights)
    one_by_one = [spectral_normalize(weight, u, v).weight_sn for weight in weights]
    torch.testing.assert_close(together, torch.stack(one_by_one))


def tangent_of_gradient(layer, read, x):
    """d/dx of the weight's gradient, by forward over reverse."""
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        loss = nn.functional.linear(dual, read()).square().sum()
        (found,) = torch.autograd.grad(loss, layer.parametrizations.weight.original)
        return forward_ad.unpack_dual(found).tangent


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # as torch imports itself
@pytest.mark.parametrize("foreach", [True, False])
def test_forward_over_reverse(foreach):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 4).double()

        def forward(self, x):
            return tangent_of_gradient(self.layer, lambda: self.layer.weight, x)

    model = apply_spectral_norm(Model(), foreach=foreach).eval()
    twin = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4).double()).eval()
    twin.load_state_dict(model.layer.state_dict())
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = tangent_of_gradient(twin, lambda: twin.weight, x)
    torch.testing.assert_close(model(x), expected)
    before = model.layer.weight
    torch.testing.assert_close(tangent_of_gradient(model.layer, lambda: before, x), expected)


def batched_gradients(layer, x):
    rows = torch.eye(12).view(12, 3, 4)
    original = layer.parametrizations.weight.original
    return torch.autograd.grad(layer(x), original, rows, is_grads_batched=True)[0]


def of_the_original(derivative):
    def take(layer, x):
        def loss(original):
            parameters = {"parametrizations.weight.original": original}
            return functional_call(layer, parameters, (x,)).square().sum()

        original = layer.parametrizations.weight.original.detach()
        return derivative(loss, original, vectorize=True)

    return take


@pytest.mark.parametrize(
    "derivative",
    [
        batched_gradients,
        of_the_original(torch.autograd.functional.jacobian),
        of_the_original(torch.autograd.functional.hessian),
    ],
    ids=["gradients", "jacobian", "hessian"],
)
def test_many_gradients_at_a_time(derivative):
    layer = spectral_norm(nn.Linear(5, 4)).eval()
    twin = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4)).eval()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(3, 5)
    torch.testing.assert_close(derivative(layer, x), derivative(twin, x), rtol=1e-4, atol=1e-5)
