"""Forwards that a checkpoint recomputes: as they were, or an error."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snorm_triton import apply_spectral_norm

# As torch imports itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def not_reentrant(model, x):
    return checkpoint(model, x, use_reentrant=False)


def reentrant(model, x):
    return checkpoint(model, x.clone().requires_grad_(), use_reentrant=True)


def around_compiled(model, x):
    return checkpoint(torch.compile(model, backend="aot_eager"), x, use_reentrant=False)


def inside_compiled(model, x):
    body = torch.compile(lambda x: not_reentrant(model, x), backend="aot_eager", fullgraph=True)
    return body(x)


def inside_inductor(model, x):
    return torch.compile(lambda x: not_reentrant(model, x), fullgraph=True)(x)


WAYS = [not_reentrant, reentrant, around_compiled, inside_compiled, inside_inductor]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def discriminator(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh()).double()
    return apply_spectral_norm(model, foreach=False, **options)


def gradients(way, model, micro_batches=2):
    for _ in range(micro_batches):
        way(model, torch.ones(3, 6, dtype=torch.float64)).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("power_iter", ["access", "update"])
def test_a_forward_before_each_backward_gives_the_gradients_of_the_plain_model(way, power_iter):
    model, plain = (discriminator(power_iter=power_iter) for _ in range(2))
    for each in (model, plain):  # accesses that nothing recomputes
        each(torch.ones(1, 6, dtype=torch.float64))
    expected = gradients(lambda model, x: model(x), plain)
    for grad, reference in zip(gradients(way, model), expected, strict=True):
        assert torch.allclose(grad, reference, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_two_forwards_that_both_iterate_are_refused(way, frozen):
    model = discriminator().requires_grad_(not frozen)
    real, fake = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = way(model, real).mean() - way(model, fake).square().mean()
    with pytest.raises(RuntimeError, match=r"power_iter='update'|modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("way", [not_reentrant, reentrant, around_compiled])
def test_an_access_between_forward_and_backward_is_refused(way):
    model = discriminator()
    loss = way(model, torch.randn(3, 6, dtype=torch.float64)).sum()
    with torch.no_grad():
        model(torch.randn(3, 6, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="power_iter='update'"):
        loss.backward()


def test_evaluation_between_forward_and_backward_is_no_access():
    model = discriminator()
    loss = not_reentrant(model, torch.randn(3, 6, dtype=torch.float64)).sum()
    model.eval()(torch.randn(3, 6, dtype=torch.float64))
    model.train()
    loss.backward()


def test_a_forward_without_backward_is_forgotten_at_the_next_step():
    model = discriminator()
    not_reentrant(model, torch.randn(3, 6, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    not_reentrant(model, torch.randn(3, 6, dtype=torch.float64)).sum().backward()
