"""Training: forwards, backwards, modes."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from bench.memory import memory_of
from snorm_triton import sigmas


def discriminator(sn, **options):
    torch.manual_seed(0)
    first, last = nn.Linear(6, 8).double(), nn.Linear(8, 5).double()
    # Far from converged, so that another iteration shows.
    model = nn.Sequential(
        sn.spectral_norm(first, **options), nn.Tanh(), sn.spectral_norm(last, **options)
    )
    for layer in (first, last):
        nn.init.normal_(sn.original(layer))
    return model


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_equal(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one, other)


@pytest.mark.promise("Two forwards, then backward through both")
def test_two_forwards(sn):
    model = discriminator(sn)
    real, fake = torch.randn(2, 3, 6, dtype=torch.float64)
    gradients(model(real).sum() - model(fake).sum(), model)


@pytest.mark.promise(
    'D(real) and D(fake) see one weight, which costs one iteration: `power_iter="update"`',
    torch="each forward iterates",
)
def test_one_weight_for_real_and_fake(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4), power_iter="update")
    nn.init.normal_(sn.original(layer))
    first, u = layer.weight, sn.vectors(layer)[0].clone()
    assert torch.equal(layer.weight, first)
    assert torch.equal(sn.vectors(layer)[0], u)


@pytest.mark.promise(
    "One iteration for each step of a fused optimizer, which leaves the weight's version as it was",
    torch="each forward iterates",
)
def test_fused_optimizer(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4), power_iter="update")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    u, _ = sn.vectors(layer)
    for _ in range(2):
        layer.weight.square().sum().backward()
        optimizer.step()
        before = u.clone()
        assert not torch.equal(layer.weight, before)
        assert not torch.equal(u, before)


@pytest.mark.promise(
    "Activation checkpointing: the gradients of the plain model",
    torch=("the recomputation iterates again, and the gradients are off", AssertionError),
)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(sn, use_reentrant):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    plain, model = discriminator(sn), discriminator(sn)
    output = checkpoint(model, x, use_reentrant=use_reentrant)
    assert_equal(gradients(output.square().sum(), model), gradients(plain(x).square().sum(), plain))


@pytest.mark.promise(
    'Activation checkpointing of D(real) + D(fake), with `power_iter="update"`',
    torch="each forward iterates",
)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_of_two_forwards(sn, use_reentrant):
    real, fake = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plain, model = (discriminator(sn, power_iter="update") for _ in range(2))
    outputs = [checkpoint(model, x, use_reentrant=use_reentrant) for x in (real, fake)]
    assert_equal(
        gradients(outputs[0].sum() - outputs[1].square().sum(), model),
        gradients(plain(real).sum() - plain(fake).square().sum(), plain),
    )


@pytest.mark.promise("A gradient penalty, twice differentiated")
def test_gradient_penalty(sn):
    model = discriminator(sn)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (grad.norm(dim=1) - 1).square().sum().backward()
    for layer in (model[0], model[2]):
        gradient = sn.original(layer).grad
        assert gradient.isfinite().all()
        assert gradient.norm() > 0


@pytest.mark.promise(
    "`parametrize.cached()`: one weight for all forwards inside",
    hook=("without effect: each forward iterates", AssertionError),
)
def test_cached(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    with parametrize.cached():
        assert sn.weight(layer) is sn.weight(layer)


@pytest.mark.promise(
    "Removal while training leaves the weight that was in use, without another iteration",
    parametrization=("iterates once more", AssertionError),
)
def test_removal(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4))
    nn.init.normal_(sn.original(layer))
    in_use = sn.weight(layer).detach().clone()
    sn.remove(layer, "weight")
    torch.testing.assert_close(layer.weight.detach(), in_use, rtol=1e-5, atol=1e-6)


@pytest.mark.promise(
    "Lazy modules, normalized from the first output on",
    hook=("refused: ValueError", ValueError),
    parametrization=("refused: RuntimeError", RuntimeError),
)
def test_lazy(sn):
    layer = sn.spectral_norm(nn.LazyLinear(4))
    output = layer(torch.eye(6))
    weight = (output - layer.bias).T
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.05)


@pytest.mark.promise("Sigma of each layer, without waiting for the device", torch="none")
def test_sigmas(sn):
    model = discriminator(sn)
    model(torch.randn(3, 6, dtype=torch.float64))
    for name, sigma in sigmas(model).items():
        weight = sn.original(model.get_submodule(name.partition(".")[0]))
        assert 0 < sigma <= torch.linalg.matrix_norm(weight, 2) * (1 + 1e-6)


@pytest.mark.promise(
    "One allocation of the weight's size forward, and one backward",
    torch=("seven", AssertionError),
)
def test_memory(sn):
    layer = sn.spectral_norm(nn.Linear(1024, 1024))
    original = sn.original(layer)
    grad = torch.randn_like(original)
    layer(torch.randn(1, 1024))  # before that, a copy tells what a client writes into the weight

    def access():
        return torch.autograd.grad(sn.weight(layer), original, grad)

    assert memory_of(access, torch.device("cpu"), original.nbytes)["allocations"] == 2
