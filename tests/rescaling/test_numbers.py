"""A bound and a scale: the numbers of the definition, in whatever way a weight is normalized."""

from copy import deepcopy
from math import inf

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from snorm_triton import apply_spectral_norm, sigmas, spectral_norm
from snorm_triton.functional import spectral_normalize

# In units of the sigma that a layer has, so that half of them divide and half do not.
RESCALINGS = {
    "bound that holds": {"bound": 0.5},
    "bound that does not": {"bound": 2.0},
    "no limit": {"bound": inf},
    "scale": {"scale": 2.5},
    "bound and scale": {"bound": 0.5, "scale": 0.25},
    "learned": {"scale": "learned"},
    "bound and learned": {"bound": 0.5, "scale": "learned"},
}


def dashed(names):
    return [name.replace(" ", "-") for name in names]


def sigma_of(layer, parameter="weight"):
    """Of the next access in training, which iterates once more."""
    original = layer.parametrizations[parameter].original.detach()
    norm = layer.parametrizations[parameter][0]
    state = norm._u, norm._v
    return spectral_normalize(original, *state, dim=norm.dim, backend="torch")


def in_units(options, sigma):
    bound = options.get("bound")
    return options if bound is None else options | {"bound": bound * sigma.item()}


def expected(weight, sigma, bound=None, scale=1.0):
    """The definition, in float64 and differentiable."""
    divisor = sigma if bound is None else (sigma / bound).clamp_min(1)
    return scale * weight / divisor


def taken(norm):
    scale = norm.scale.detach().double() if "scale" in norm._parameters else norm.options.scale
    return {"bound": norm.options.bound, "scale": scale}


@pytest.mark.parametrize("options", RESCALINGS.values(), ids=dashed(RESCALINGS))
def test_an_access_and_its_gradients(backend, options, relative_error):
    check_access(lambda: nn.Conv2d(3, 5, 3), "weight", backend, options, relative_error)


@pytest.mark.parametrize("options", [{"bound": 0.5, "scale": "learned"}, {"bound": 2.0}], ids=str)
def test_every_layer(layer_kind, backend, options, relative_error):
    check_access(layer_kind.make, layer_kind.parameter, backend, options, relative_error)


def check_access(make, name, backend, options, relative_error):
    plain, layer = spectral_norm(make(), name), make()
    options = in_units(options, plain.parametrizations[name][0].sigma)
    layer.load_state_dict(start_of(plain, name))
    spectral_norm(layer, name, backend=backend, **options)
    norm = layer.parametrizations[name][0]
    reference = sigma_of(layer, name)
    original = layer.parametrizations[name].original
    weight = original.detach().double().requires_grad_()
    numbers = taken(norm)
    if isinstance(numbers["scale"], torch.Tensor):
        numbers["scale"] = numbers["scale"].requires_grad_()
    direction = fold(reference, weight, norm.dim)
    sigma = (direction * weight).sum()
    wanted = expected(weight, sigma, **numbers)
    grad = torch.randn_like(original)

    ours = getattr(layer, name)
    ours.backward(grad)
    wanted.backward(grad.double())
    assert relative_error(ours, wanted) < 2e-6
    assert relative_error(original.grad, weight.grad) < 2e-5
    if options.get("scale") == "learned":
        assert norm.scale.grad.shape == (1,)
        assert relative_error(norm.scale.grad, numbers["scale"].grad) < 2e-5


def start_of(layer, name):
    """Its state dict before it was normalized."""
    state = {k: v for k, v in layer.state_dict().items() if "parametrizations" not in k}
    return state | {name: layer.parametrizations[name].original.detach().clone()}


def fold(reference, weight, dim):
    u, v = reference.u.double(), reference.v.double()
    others = [size for axis, size in enumerate(weight.shape) if axis != dim]
    return torch.outer(u, v).view(weight.shape[dim], *others).movedim(0, dim)


@pytest.mark.parametrize("bound", [None, 0.1, 100.0], ids=["none", "below", "above"])
@pytest.mark.parametrize("scale", [1.0, 2.5, "tensor"])
def test_derivatives_of_first_and_second_order(backend, bound, scale):
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    u, v = (nn.functional.normalize(torch.randn(n, dtype=torch.float64), dim=0) for n in (3, 4))
    scales = ()
    if scale == "tensor":
        scales = (torch.full((1,), 1.7, dtype=torch.float64, requires_grad=True),)

    def normalized(weight, *scales):
        return spectral_normalize(
            weight,
            u,
            v,
            n_power_iterations=0,
            bound=bound,
            scale=scales[0] if scales else scale,
            backend=backend,
        ).weight_sn

    assert gradcheck(normalized, (weight, *scales))
    assert gradgradcheck(normalized, (weight, *scales))


@pytest.mark.parametrize("options", [{"bound": 0.5}, {"scale": "learned"}], ids=str)
def test_a_zero_weight(backend, options):
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    spectral_norm(layer, backend=backend, **options)
    grad = torch.randn(3, 4)
    layer.weight.backward(grad)
    assert torch.equal(layer.weight.detach(), torch.zeros(3, 4))
    assert torch.equal(layer.parametrizations.weight.original.grad, grad)


@pytest.mark.parametrize("options", [{"bound": 0.5}, {"bound": inf}, {"scale": "learned"}], ids=str)
def test_a_weight_that_is_no_number_shows(backend, options):
    layer = spectral_norm(nn.Linear(4, 3), backend=backend, **options)
    with torch.no_grad():
        layer.parametrizations.weight.original[0, 0] = torch.nan
    assert layer.weight.isnan().any()
    assert sigmas(layer)["weight"].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{"bound": 0.3, "scale": 3.0}, {"scale": "learned"}], ids=str)
def test_half_precision(backend, dtype, options, relative_error):
    layer = spectral_norm(nn.Linear(24, 16).to(dtype), backend=backend, **options)
    norm, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    assert all(p.dtype == dtype for p in layer.parameters())
    sigma = sigma_of(layer).sigma.double()
    grad = torch.randn(16, 24, dtype=dtype)
    layer.weight.backward(grad)
    layer.eval()
    rounding, wanted = torch.finfo(dtype).eps, expected(original.double(), sigma, **taken(norm))
    assert relative_error(layer.weight, wanted) < rounding
    if options["scale"] == "learned":
        inner = (grad.double() * original.double()).sum() / sigma
        # A sum of rounded products may cancel.
        assert (norm.scale.grad.double() - inner).abs() < 20 * rounding


@pytest.mark.parametrize("options", [{"bound": 0.5, "scale": 2.0}, {"scale": "learned"}], ids=str)
@pytest.mark.parametrize("foreach", [True, False])
def test_a_whole_model(backend, options, foreach, relative_error):
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    one_by_one = deepcopy(model)
    for layer in one_by_one[::2]:
        torch.manual_seed(1)
        spectral_norm(layer, backend="torch", **options)
    for layer in model[::2]:
        torch.manual_seed(1)
        spectral_norm(layer, backend=backend, **options)
    apply_spectral_norm(model, foreach=foreach)
    x = torch.randn(5, 8)
    for _ in range(2):
        y, z = model(x), one_by_one(x)
        assert relative_error(y, z) < 1e-5
        for each in (y, z):
            each.square().sum().backward()
    for ours, alone in zip(model.parameters(), one_by_one.parameters(), strict=True):
        assert relative_error(ours.grad, alone.grad) < 1e-4
    model.eval(), one_by_one.eval()
    assert relative_error(model(x), one_by_one(x)) < 1e-5


def test_different_bounds_and_scales_of_one_model(backend, relative_error):
    layers = [
        spectral_norm(nn.Linear(6, 6, bias=False), backend=backend, **options)
        for options in ({}, {"bound": 0.5}, {"bound": 0.25}, {"scale": 3.0}, {"scale": "learned"})
    ]
    model = apply_spectral_norm(nn.Sequential(*layers), foreach=True).eval()
    x = torch.randn(3, 6)
    wanted = x
    for layer in layers:
        wanted = wanted @ layer.weight.T
    assert relative_error(model(x), wanted) < 1e-5


def test_the_norm_is_what_was_asked_for(backend):
    layer = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        layer.weight *= 10
    spectral_norm(layer, n_power_iterations=50, bound=0.7, backend=backend)
    norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
    assert norm == pytest.approx(0.7, rel=1e-4)
    with torch.no_grad():
        layer.parametrizations.weight.original *= 1e-3
    assert torch.equal(layer.weight, layer.parametrizations.weight.original)


def test_a_scale_may_pass_zero(backend):
    layer = spectral_norm(nn.Linear(4, 3), scale="learned", backend=backend)
    scale = layer.parametrizations.weight[0].scale
    for value in (0.0, -2.0):
        with torch.no_grad():
            scale.fill_(value)
        layer.zero_grad()
        weight = layer.weight
        weight.sum().backward()
        assert weight.isfinite().all()
        assert layer.parametrizations.weight.original.grad.isfinite().all()
        assert scale.grad.isfinite().all()
        assert scale.grad != 0
        norm = torch.linalg.matrix_norm(weight.detach(), 2)
        assert norm == pytest.approx(abs(value), rel=1e-3)
