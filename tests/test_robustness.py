"""What breaks elsewhere: zero weights, non-finite steps, extreme scales, two forwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from snorm_triton import reference, sigmas, spectral_norm
from snorm_triton.functional import l2_normalize, spectral_normalize


def init_with_a_gap(weight):
    """A weight whose largest singular value is far above the next: a few iterations converge."""
    with torch.no_grad():
        weight.normal_().add_(3)


def state_of(layer):
    parametrization = layer.parametrizations.weight[0]
    return parametrization._u.clone(), parametrization._v.clone()


@pytest.fixture(params=["Linear", "Conv2d", "ConvTranspose2d"])
def layer(request, backend):
    make = {
        "Linear": lambda: nn.Linear(6, 4),
        "Conv2d": lambda: nn.Conv2d(3, 4, 3),
        "ConvTranspose2d": lambda: nn.ConvTranspose2d(3, 4, 3),
    }
    return spectral_norm(make[request.param](), backend=backend)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_zero_weight_gives_zero_and_the_gradient_of_the_output(layer, training):
    layer.train(training)
    original = layer.parametrizations.weight.original
    nn.init.zeros_(original)
    before = state_of(layer)
    weight = layer.weight
    grad = torch.randn_like(weight)
    weight.backward(grad)
    assert (weight == 0).all()
    assert torch.equal(original.grad, grad)
    for now, then in zip(state_of(layer), before, strict=True):
        assert torch.equal(now, then)


def test_a_zero_weight_reports_sigma_zero_and_recovers(layer):
    original = layer.parametrizations.weight.original
    nn.init.zeros_(original)
    assert layer.weight.abs().sum() == 0
    assert sigmas(layer)["weight"] == 0
    init_with_a_gap(original)
    for _ in range(10):
        weight = layer.weight
    dim = layer.parametrizations.weight[0].dim
    assert reference.largest_singular_value(weight, dim).item() == pytest.approx(1, abs=1e-3)


def test_a_layer_registered_on_a_zero_weight_recovers(backend):
    layer = nn.Linear(6, 4)
    nn.init.zeros_(layer.weight)
    spectral_norm(layer, backend=backend)
    assert layer.weight.abs().sum() == 0
    init_with_a_gap(layer.parametrizations.weight.original)
    for _ in range(10):
        weight = layer.weight
    assert reference.largest_singular_value(weight).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("elements", ["one", "all"])
def test_a_non_finite_weight_shows_but_does_not_stay(layer, bad, elements):
    original = layer.parametrizations.weight.original
    good = original.detach().clone()
    before = state_of(layer)
    with torch.no_grad():
        original.flatten()[-1:].fill_(bad) if elements == "one" else original.fill_(bad)
    assert not torch.isfinite(layer.weight).all()
    for now, then in zip(state_of(layer), before, strict=True):
        assert torch.equal(now, then)

    with torch.no_grad():
        original.copy_(good)
    twin_u, twin_v = before
    dim = layer.parametrizations.weight[0].dim
    expected = reference.spectral_normalize(good, twin_u, twin_v, dim=dim)
    assert (layer.weight - expected.weight_sn).norm() < 1e-6 * expected.weight_sn.norm()


@pytest.mark.parametrize("vector", ["_u", "_v"])
def test_vectors_that_are_not_finite_show_in_evaluation(layer, vector):
    with torch.no_grad():
        getattr(layer.parametrizations.weight[0], vector)[0] = float("nan")
    assert layer.eval().weight.isnan().all()
    assert sigmas(layer)["weight"].isnan()


@pytest.mark.parametrize(("shape", "dim"), [((21, 3, 3, 5), 0), ((6, 5, 2), 1)])
@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e-15, 1e-10, 1e10, 1e15, 1e19, 1e30])
def test_the_scale_of_the_weight_does_not_matter(scale, shape, dim, backend, relative_error):
    weight = (scale * torch.randn(shape)).requires_grad_()
    u = F.normalize(torch.randn(shape[dim]), dim=0)
    v = F.normalize(torch.randn(weight.numel() // shape[dim]), dim=0)
    grad = torch.randn(weight.shape)
    ours = spectral_normalize(weight, u, v, dim=dim, backend=backend)
    ours.weight_sn.backward(grad)
    exact = weight.detach().double().requires_grad_()
    expected = reference.spectral_normalize(exact, u, v, dim=dim)
    expected.weight_sn.backward(grad.double())
    assert relative_error(ours.sigma, expected.sigma) < 1e-6
    assert relative_error(ours.weight_sn, expected.weight_sn) < 1e-6
    assert relative_error(weight.grad, exact.grad) < 1e-5
    assert relative_error(ours.v, expected.v) < 1e-5


@pytest.mark.parametrize("scale", [1e-200, 1e-170, 1e170, 1e200])
def test_nor_does_it_in_float64(scale, backend, relative_error):
    weight = scale * torch.randn(7, 9, dtype=torch.float64)
    u, v = F.normalize(torch.randn(7).double(), dim=0), F.normalize(torch.randn(9).double(), dim=0)
    ours = spectral_normalize(weight, u, v, backend=backend)
    expected = reference.spectral_normalize(weight / scale, u, v)
    assert relative_error(ours.sigma / scale, expected.sigma) < 1e-13
    assert relative_error(ours.weight_sn, expected.weight_sn) < 1e-13


@pytest.mark.parametrize("scale", [1e-10, 1, 1e10, 1e25, 1e30])
def test_nor_does_it_of_a_vector(scale, relative_error):
    weight = (scale * torch.randn(5)).requires_grad_()
    weight_sn, norm = l2_normalize(weight)
    assert relative_error(norm / scale, weight.double().norm() / scale) < 1e-6
    assert relative_error(weight_sn.norm(), torch.tensor(1.0)) < 1e-6


def test_a_zero_vector_has_derivatives():
    weight = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(
        l2_normalize(weight)[0], weight, torch.arange(4.0).double(), create_graph=True
    )
    assert torch.equal(grad, torch.arange(4.0).double())
    assert grad.square().sum().requires_grad
    (second,) = torch.autograd.grad(grad.square().sum(), weight, allow_unused=True)
    assert second is None or torch.isfinite(second).all()


def test_a_sigma_that_overflows_is_not_kept(backend):
    weight = torch.full((8, 8), 3e38)
    u, v = F.normalize(torch.randn(8), dim=0), F.normalize(torch.ones(8), dim=0)
    ours = spectral_normalize(weight, u, v, backend=backend)
    assert torch.equal(ours.u, u)
    assert torch.equal(ours.v, v)


def test_vectors_of_zeros_are_divided_by_eps(backend):
    weight, u, v = torch.randn(4, 3), torch.zeros(4), F.normalize(torch.ones(3), dim=0)
    ours = spectral_normalize(weight, u, v, n_power_iterations=0, eps=1e-6, backend=backend)
    assert ours.sigma == 0
    assert torch.equal(ours.weight_sn, weight)
    tiny = spectral_normalize(weight, u + 1e-9, v, n_power_iterations=0, eps=1e-6, backend=backend)
    expected = (weight @ v).sum() * 1e-9 / 1e-6
    assert (tiny.sigma - expected).abs() < 1e-6 * expected.abs()


def test_eps_reaches_the_estimate(backend):
    layer = spectral_norm(nn.Linear(3, 4), eps=1e3, backend=backend).eval()
    raw = layer.parametrizations.weight.original
    assert layer.weight.norm() > 1e5 * raw.norm()


def test_vectors_and_gradients_may_be_strided_or_negated(backend, relative_error):
    weight = torch.randn(6, 5).requires_grad_()
    u, v = torch.randn(12)[::2], torch.randn(10)[::2]
    grad = torch._neg_view(torch.randn(6, 5))
    for n_power_iterations in (0, 1):
        weight.grad = None
        ours = spectral_normalize(
            torch._neg_view(weight), u, v, n_power_iterations=n_power_iterations, backend=backend
        )
        ours.weight_sn.backward(grad)
        exact = weight.detach().double().requires_grad_()
        expected = reference.spectral_normalize(-exact, u, v, n_power_iterations=n_power_iterations)
        expected.weight_sn.backward(grad.double())
        assert relative_error(ours.sigma, expected.sigma) < 1e-5
        assert relative_error(ours.weight_sn, expected.weight_sn) < 1e-5
        assert relative_error(weight.grad, exact.grad) < 1e-5


def test_rows_of_very_different_scale_share_one_sum(backend, relative_error):
    weight = torch.randn(48, 16) * torch.logspace(-30, 30, 48)[:, None]
    u, v = F.normalize(torch.randn(48), dim=0), F.normalize(torch.randn(16), dim=0)
    ours = spectral_normalize(weight, u, v, backend=backend)
    expected = reference.spectral_normalize(weight.double(), u, v)
    assert relative_error(ours.sigma, expected.sigma) < 1e-6
    assert relative_error(ours.u, expected.u) < 1e-6


def test_the_result_is_bitwise_repeatable(backend):
    weight = torch.randn(33, 70)
    u, v = F.normalize(torch.randn(33), dim=0), F.normalize(torch.randn(70), dim=0)
    first, second = (spectral_normalize(weight, u, v, backend=backend) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_averaged_vectors_still_give_the_right_scale_in_eval(layer):
    parametrization = layer.parametrizations.weight[0]
    init_with_a_gap(layer.parametrizations.weight.original)
    for _ in range(10):
        _ = layer.weight
    with torch.no_grad():
        parametrization._u.mul_(0.22)
        parametrization._v.mul_(0.5)
    layer.eval()
    top = reference.largest_singular_value(layer.weight, parametrization.dim).item()
    assert top == pytest.approx(1, abs=1e-3)


def test_two_forwards_before_a_backward(layer):
    original = layer.parametrizations.weight.original
    grads = []
    for together in (True, False):
        torch.manual_seed(1)
        u, v = (x.clone() for x in state_of(layer))
        original.grad = None
        first, second = layer.weight.square().sum(), layer.weight.sum()
        if together:
            (first - second).backward()
        else:
            first.backward()
            (-second).backward()
        grads.append(original.grad)
        layer.parametrizations.weight[0]._u.copy_(u)
        layer.parametrizations.weight[0]._v.copy_(v)
    assert (grads[0] - grads[1]).norm() <= 1e-6 * grads[0].norm()


def test_evaluation_writes_sigma_and_no_state(layer):
    layer.eval()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    sigma = sigmas(layer)["weight"]
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(2)
        before["parametrizations.weight.original"].mul_(2)
    _ = layer.weight
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    assert (sigmas(layer)["weight"] - 2 * sigma).abs() < 1e-5 * sigma


def test_sigma_is_that_of_what_was_loaded_before_any_access(layer):
    trained = {key: 3 * value for key, value in layer.state_dict().items() if "bias" not in key}
    layer.eval().load_state_dict(trained, strict=False)
    original = layer.parametrizations.weight.original
    before = sigmas(layer)["weight"]
    weight = layer.weight
    assert (before * weight - original).norm() < 1e-6 * original.norm()
    assert (sigmas(layer)["weight"] * weight - original).norm() < 1e-6 * original.norm()


def test_a_meta_layer_can_be_normalized():
    with torch.device("meta"):
        layer = spectral_norm(nn.Conv2d(3, 4, 3))
    assert layer.weight.shape == (4, 3, 3, 3)
    assert spectral_norm(nn.Linear(4, 3)).to("meta").weight.is_meta


def test_nothing_depends_on_a_value_on_the_host():
    """Fake tensors hold no values: an operation that reads one, and so synchronizes, raises."""
    with FakeTensorMode():
        layer = spectral_norm(nn.ConvTranspose2d(3, 4, 3), backend="torch")
        layer.weight.square().sum().backward()
        _ = layer.eval().weight
        with pytest.raises(DataDependentOutputException):
            layer.weight.sum().item()


def test_a_state_assigned_as_columns_of_a_matrix(backend):
    layer, twin = (spectral_norm(nn.Linear(7, 5), backend=backend) for _ in range(2))
    state = twin.state_dict()
    columns = {"_u": torch.randn(5, 2), "_v": torch.randn(7, 2)}
    for name, matrix in columns.items():
        key = f"parametrizations.weight.0.{name}"
        matrix[:, 0] = state[key]
        state[key] = matrix[:, 0]
    beside = {name: matrix[:, 1].clone() for name, matrix in columns.items()}
    layer.load_state_dict(state, assign=True)
    assert torch.equal(layer.weight, twin.weight)
    for name, matrix in columns.items():
        assert torch.equal(matrix[:, 1], beside[name])


@pytest.mark.parametrize("power_iter", ["access", "update"])
def test_a_model_made_for_inference_is_evaluated_there(power_iter):
    with torch.inference_mode():
        layer = spectral_norm(nn.Linear(60, 40), power_iter=power_iter).double().eval()
        weight = layer.weight
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.1)
    largest = torch.linalg.matrix_norm(layer.parametrizations.weight.original, 2)
    assert sigmas(layer)["weight"].item() == pytest.approx(largest.item(), rel=0.1)
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()  # of which the layer hears
