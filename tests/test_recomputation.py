"""Forwards that a checkpoint recomputes come out as they did."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from snorm_triton import apply_spectral_norm, spectral_norm
from snorm_triton.functional import spectral_normalize
from snorm_triton.ops import recomputation
from snorm_triton.torch_internals import checkpoints

# As torch imports itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


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


EAGER_WAYS = [not_reentrant, reentrant, around_compiled]


def plain(model, x):
    return model(x)


def leaf(number=3):
    return torch.randn(number, 6, dtype=torch.float64, requires_grad=True)


def step_of_another_optimizer():
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    torch.optim.SGD([parameter], lr=0.1).step()


def nothing(model, x):
    pass


def an_access(model, x):
    with torch.no_grad():
        model(x)


def an_evaluation_of_other_weights(model, x):
    others = {name: 3 * value for name, value in model.named_parameters()}
    model.eval()
    torch.func.functional_call(model, others, x)
    model.train()


def a_forward_that_is_dropped(model, x):
    not_reentrant(model, x)


def a_step(model, x):
    step_of_another_optimizer()


def a_gradient(model, x):
    (gradient,) = torch.autograd.grad(not_reentrant(model, x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    model.zero_grad()


BETWEEN = [
    nothing,
    an_access,
    an_evaluation_of_other_weights,
    a_forward_that_is_dropped,
    a_step,
    a_gradient,
]


def gradients_of_two_forwards(way, model, between=nothing):
    """D(real) and D(fake), something between, and one backward: of the weights and of the data."""
    torch.manual_seed(1)
    real, fake, other = leaf(), leaf(), leaf()
    loss = way(model, real).square().mean()
    between(model, other)
    loss = loss - way(model, fake).square().mean()
    between(model, other)
    loss.backward()
    parameters = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return [*parameters, real.grad, fake.grad] if way is not reentrant else parameters


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("power_iter", ["access", "update"])
@pytest.mark.parametrize("way", EAGER_WAYS)
def test_what_comes_between_changes_no_gradient(way, power_iter, between):
    twin = discriminator(power_iter=power_iter)
    expected = gradients_of_two_forwards(plain, twin, between)
    model = discriminator(power_iter=power_iter)
    for grad, reference in zip(
        gradients_of_two_forwards(way, model, between), expected, strict=False
    ):
        assert torch.allclose(grad, reference, rtol=1e-12, atol=1e-14)
    for one, other in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("way", [not_reentrant, around_compiled])
def test_frozen_weights_too(way):
    expected = gradients_of_two_forwards(plain, discriminator().requires_grad_(False))
    grads = gradients_of_two_forwards(way, discriminator().requires_grad_(False))
    for grad, reference in zip(grads, expected, strict=True):
        assert torch.allclose(grad, reference, rtol=1e-12, atol=1e-14)


class Checkpointed(nn.Sequential):
    """Layers that are each checkpointed, in a checkpoint themselves or not."""

    def forward(self, x):
        for layer in self:
            x = not_reentrant(layer, x)
        return x


@pytest.mark.parametrize("foreach", [False, True], ids=["each", "foreach"])
@pytest.mark.parametrize("way", [plain, not_reentrant, reentrant])
@pytest.mark.parametrize("power_iter", ["access", "update"])
def test_checkpoints_inside_a_model_and_inside_each_other(way, power_iter, foreach):
    def make(cls):
        torch.manual_seed(0)
        model = cls(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh()).double()
        return apply_spectral_norm(model, foreach=foreach, power_iter=power_iter)

    expected = gradients_of_two_forwards(plain, make(nn.Sequential))
    for grad, reference in zip(
        gradients_of_two_forwards(way, make(Checkpointed)), expected, strict=False
    ):
        assert torch.allclose(grad, reference, rtol=1e-12, atol=1e-14)


def test_a_layer_accessed_twice_in_a_checkpoint():
    def twice(model, x):
        return model(x).sum() + model(x).square().sum()

    expected = gradients_of_two_forwards(twice, discriminator())
    grads = gradients_of_two_forwards(
        lambda model, x: checkpoint(twice, model, x, use_reentrant=False), discriminator()
    )
    for grad, reference in zip(grads, expected, strict=True):
        assert torch.allclose(grad, reference, rtol=1e-12, atol=1e-14)


def test_a_graph_that_is_kept_gives_its_gradient_again():
    model, x = discriminator(), leaf()
    output = not_reentrant(model, x).sum()
    (first,) = torch.autograd.grad(output, x, retain_graph=True)
    model(x)
    (second,) = torch.autograd.grad(output, x)
    assert torch.equal(first, second)


def test_activations_kept_elsewhere_are_no_checkpoint():
    model, twin = discriminator(), discriminator()

    def offloaded(model, x):
        with torch.autograd.graph.save_on_cpu():
            return model(x)

    expected = gradients_of_two_forwards(plain, twin)
    for grad, reference in zip(gradients_of_two_forwards(offloaded, model), expected, strict=True):
        assert torch.equal(grad, reference)


@pytest.mark.parametrize("way", [inside_compiled, inside_inductor])
def test_two_forwards_of_checkpoints_inside_compiled_code_are_refused(way):
    model = discriminator()
    loss = way(model, leaf()).mean() - way(model, leaf()).square().mean()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_a_checkpoint_kept_goes_with_it(monkeypatch):
    alive = weakref.WeakSet()

    class Kept(recomputation.Kept):
        def __init__(self):
            super().__init__()
            alive.add(self)

    monkeypatch.setattr(recomputation, "Kept", Kept)
    output = not_reentrant(discriminator(), leaf())
    (kept,) = alive
    assert [len(states) for states in kept.states.values()] == [1, 1]
    del output, kept
    gc.collect()
    assert not alive


@pytest.mark.parametrize("way", [plain, not_reentrant])
def test_the_function_is_recomputed_as_it_was(way):
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    u, v = torch.randn(4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)

    def function(weight):
        return spectral_normalize(weight, u, v).weight_sn.tanh().sum()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(function(weight), weight)
    output = compiled(weight) if way is plain else checkpoint(compiled, weight, use_reentrant=False)
    (gradient,) = torch.autograd.grad(output, weight)
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=0)


def test_complex_weights_are_recomputed_as_they_were():
    def make():
        torch.manual_seed(0)
        return spectral_norm(nn.Linear(6, 4, dtype=torch.complex128))

    def loss(model, x):
        return model(x).abs().square().sum()

    model, twin = make(), make()
    x = torch.randn(3, 6, dtype=torch.complex128)
    compiled = torch.compile(model, backend="aot_eager")
    for each, output in (
        (model, checkpoint(loss, compiled, x, use_reentrant=False)),
        (twin, loss(twin, x)),
    ):
        output.backward()
        assert each.parametrizations.weight.original.grad.abs().sum() > 0
    ours, theirs = (each.parametrizations.weight.original.grad for each in (model, twin))
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=0)


def selective(model, x):
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("foreach", [True, False])
def test_a_selective_checkpoint(training, foreach):
    """It wants the operations of the forward again; a recomputed access does others."""
    model, plain = (discriminator().train(training) for _ in range(2))
    for each in (model, plain):
        apply_spectral_norm(each, foreach=foreach)
    expected = gradients(lambda model, x: model(x), plain)
    for grad, reference in zip(gradients(selective, model), expected, strict=True):
        assert torch.allclose(grad, reference, rtol=1e-12, atol=1e-14)


def test_the_owner_of_a_buffer_is_known_as_long_as_it_lives():
    u, owner = torch.randn(3), object()
    recomputation.own(u, owner)
    for _ in range(1000):
        recomputation.own(torch.randn(3), object())
    assert recomputation.owner_of(u.detach()) is owner
    assert recomputation.owner_of(torch.randn(3)) is None
    assert len(recomputation._owners) < 500


def test_checkpoints_of_an_unknown_torch_are_told_of(monkeypatch):
    monkeypatch.setattr(checkpoints, "FILE", "elsewhere.py")
    monkeypatch.setattr(checkpoints, "_are_known", checkpoints._are_known.__wrapped__)
    model = discriminator()
    with pytest.warns(UserWarning, match="checkpoints of torch .* are not known"):
        not_reentrant(model, leaf())
