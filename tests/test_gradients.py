"""Derivatives of first and second order, against finite differences and against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils import parametrizations

from snorm_triton import spectral_norm, weight_norm
from snorm_triton.functional import spectral_normalize

SHAPES = {"linear": ((3, 4), 0), "conv": ((3, 2, 2), 0), "transposed": ((2, 3, 2), 1)}


@pytest.fixture(params=SHAPES)
def case(request):
    shape, dim = SHAPES[request.param]
    weight = torch.randn(shape, dtype=torch.float64)
    u = F.normalize(torch.randn(shape[dim], dtype=torch.float64), dim=0)
    v = F.normalize(torch.randn(weight.numel() // shape[dim], dtype=torch.float64), dim=0)
    return weight.requires_grad_(), u, v, dim


def test_first_and_second_derivatives_with_fixed_vectors(backend, case):
    weight, u, v, dim = case

    def normalized(weight):
        ours = spectral_normalize(weight, u, v, dim=dim, n_power_iterations=0, backend=backend)
        return ours.weight_sn, ours.sigma

    assert gradcheck(normalized, weight)
    assert gradgradcheck(normalized, weight)


def test_third_derivatives(case):
    weight, u, v, dim = case

    def gradient(weight):
        ours = spectral_normalize(weight, u, v, dim=dim, n_power_iterations=0)
        loss = ours.weight_sn.pow(3).sum() + ours.sigma
        return torch.autograd.grad(loss, weight, create_graph=True)[0]

    assert gradgradcheck(gradient, weight)


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: nn.ConvTranspose1d(2, 3, 2)])
def test_an_evaluated_module(make, backend):
    layer = spectral_norm(make().double(), backend=backend).eval()
    original = layer.parametrizations.weight.original
    inputs = torch.randn(2, 4 if isinstance(layer, nn.Linear) else 2, dtype=torch.float64)
    inputs = inputs if isinstance(layer, nn.Linear) else inputs[..., None].repeat(1, 1, 3)

    def output(weight):
        return functional_call(layer, {"parametrizations.weight.original": weight}, (inputs,))

    assert gradcheck(output, original)
    assert gradgradcheck(output, original)


def test_a_training_module_once_its_vectors_have_converged(backend):
    layer = spectral_norm(nn.Linear(4, 3).double(), n_power_iterations=2, backend=backend)
    weight = torch.diag(torch.tensor([3.0, 0.02, 0.01], dtype=torch.float64)) @ torch.eye(
        3, 4, dtype=torch.float64
    )
    layer.weight = weight.requires_grad_()
    for _ in range(5):
        _ = layer.weight

    def normalized(weight):
        return functional_call(
            layer, {"parametrizations.weight.original": weight}, (torch.eye(4).double(),)
        )

    # Forward differences move u and v as well, by (0.02 / 3)^2 of the step: hence the tolerance.
    assert gradcheck(normalized, layer.parametrizations.weight.original, atol=1e-2)


def test_gradient_penalty_matches_torch(backend, relative_error):
    """Double backward through the input, as in WGAN-GP."""
    grads = []
    for norm, options in (
        (spectral_norm, {"backend": backend}),
        (parametrizations.spectral_norm, {}),
    ):
        torch.manual_seed(1)
        model = nn.Sequential(
            norm(nn.Conv2d(2, 4, 3), **options), nn.Softplus(), nn.Flatten(),
            norm(nn.Linear(16, 1), **options),
        )  # fmt: skip
        images = torch.randn(3, 2, 4, 4, requires_grad=True)
        (slope,) = torch.autograd.grad(model(images).sum(), images, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        (penalty + model(images).mean()).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.isfinite(ours).all()
        assert relative_error(ours, theirs) < 1e-5


def test_a_penalty_on_sigma_trains_the_weight():
    weight = torch.randn(5, 4, requires_grad=True)
    u, v = F.normalize(torch.randn(5), dim=0), F.normalize(torch.randn(4), dim=0)
    ours = spectral_normalize(weight, u, v, n_power_iterations=20)
    ours.sigma.backward()
    assert torch.allclose(weight.grad, torch.outer(ours.u, ours.v))


def test_a_frozen_weight_keeps_no_graph(backend):
    layer = spectral_norm(nn.Linear(4, 3), backend=backend)
    with torch.no_grad():
        assert not layer.weight.requires_grad
    layer.requires_grad_(False)
    assert not layer.weight.requires_grad


def test_a_differentiable_gradient_may_be_changed_in_place(backend):
    weight = torch.randn(5, 4, requires_grad=True)
    ours = spectral_normalize(weight, torch.randn(5), torch.randn(4), backend=backend)
    loss = ours.weight_sn.square().sum() + ours.sigma
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    assert torch.equal(grad.detach() * 2, grad.mul_(2))


@pytest.mark.parametrize("normalize", [spectral_norm, weight_norm])
def test_a_gradient_may_be_changed_in_place_with_a_graph(normalize, layer_kind, backend):
    layer = normalize(layer_kind.make(), layer_kind.parameter, backend=backend)
    for _ in range(3):
        weight = getattr(layer, layer_kind.parameter)
        originals = list(layer.parametrizations[layer_kind.parameter].parameters(False))
        grads = torch.autograd.grad(weight.square().sum(), originals)
        for grad, original in zip(grads, originals, strict=True):
            expected = grad + 0.1 * original
            torch.testing.assert_close(grad.add_(original, alpha=0.1), expected)


def test_what_becomes_of_the_results_does_not_matter_to_the_gradient(backend):
    weight, u, v = torch.randn(5, 4, requires_grad=True), torch.randn(5), torch.randn(4)
    gradients = []
    for factor in (1, 3):
        ours = spectral_normalize(weight, u, v, backend=backend)
        for result in (ours.u, ours.v, ours.sigma.detach()):
            result.mul_(factor)
        gradients += torch.autograd.grad(ours.weight_sn.pow(3).sum(), weight)
    assert torch.equal(*gradients)


def test_buffers_that_require_a_gradient_get_none(backend):
    layer = spectral_norm(nn.Linear(5, 4), backend=backend)
    named = [*layer.named_parameters(), *layer.named_buffers()]
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in named}
    functional_call(layer, state, (torch.randn(2, 5),)).sum().backward()
    assert state["parametrizations.weight.original"].grad is not None
    assert all(state[name].grad is None for name, _ in layer.named_buffers())
