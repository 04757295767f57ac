"""`power_iter="update"`: one iteration for each step of an optimizer, whatever happens between."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrize, vector_to_parameters
from torch.utils.checkpoint import checkpoint

from snorm_triton import apply_spectral_norm, spectral_norm
from snorm_triton.functional import spectral_normalize

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "SGD foreach": lambda parameters: torch.optim.SGD(parameters, lr=0.1, foreach=True),
    "Adam foreach": lambda parameters: torch.optim.Adam(parameters, lr=0.1, foreach=True),
    "Adam fused": lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=True),
}


def u_of(layer):
    return layer.parametrizations.weight[0]._u


def iterated(layer):
    """How u stands after one iteration from where it is, for the weight as it is."""
    parametrization, weight = (
        layer.parametrizations.weight[0],
        layer.parametrizations.weight.original,
    )
    return spectral_normalize(weight.detach(), parametrization._u, parametrization._v).u


@pytest.fixture
def layer():
    layer = spectral_norm(nn.Linear(6, 4), power_iter="update")
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(1)  # registering it was an access already
    return layer


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request, layer):
    return OPTIMIZERS[request.param](layer.parameters())


def test_the_accesses_between_two_steps_share_an_iteration(layer, optimizer):
    for _ in range(3):
        expected = iterated(layer)
        first = layer.weight
        assert torch.equal(u_of(layer), expected)
        second = layer.weight
        assert torch.equal(second, first)
        assert torch.equal(u_of(layer), expected)
        (first + second).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_compiled_step_counts(layer):
    torch.compiler.reset()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        expected = iterated(layer)
        layer.weight.square().sum().backward()
        assert torch.equal(u_of(layer), expected)
        step()
        optimizer.zero_grad()


def test_every_evaluation_of_lbfgs_counts(layer):
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=3)
    inputs, targets, iterations = torch.randn(5, 6), torch.randn(5, 4), []

    def closure():
        optimizer.zero_grad()
        expected = iterated(layer)
        loss = (layer(inputs) - targets).square().mean()
        iterations.append(torch.equal(u_of(layer), expected))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(iterations) > 1
    assert all(iterations)


def test_what_is_replayed_is_bitwise_what_was_computed(backend):
    layer = spectral_norm(nn.Conv2d(3, 5, 3), power_iter="update", backend=backend)
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(1)
    original, grad = layer.parametrizations.weight.original, torch.randn(5, 3, 3, 3)
    first, second = layer.weight, layer.weight
    assert torch.equal(first, second)
    gradients = [torch.autograd.grad(weight, original, grad)[0] for weight in (first, second)]
    assert torch.equal(*gradients)


def test_a_change_in_place_counts(layer):
    layer.weight  # noqa: B018
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(2).add_(1)
    expected = iterated(layer)
    layer.weight  # noqa: B018
    assert torch.equal(u_of(layer), expected)


def test_an_assigned_weight_and_a_loaded_state_count(layer):
    before = copy.deepcopy(layer.state_dict())
    layer.weight = torch.randn(4, 6)
    expected = iterated(layer)
    layer.weight  # noqa: B018
    assert torch.equal(u_of(layer), expected)
    layer.load_state_dict(before)
    expected = iterated(layer)
    layer.weight  # noqa: B018
    assert torch.equal(u_of(layer), expected)


def test_evaluation_iterates_not(layer):
    u = u_of(layer).clone()
    layer.eval()
    layer.weight  # noqa: B018
    assert torch.equal(u_of(layer), u)
    layer.train()
    expected = iterated(layer)
    layer.weight  # noqa: B018
    assert torch.equal(u_of(layer), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_hears_of_steps(layer, duplicate):
    layer.weight  # noqa: B018
    twin = duplicate(layer)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        twin.weight.square().sum().backward()
        optimizer.step()
    u, expected = u_of(layer).clone(), iterated(twin)
    twin.weight  # noqa: B018
    assert torch.equal(u_of(twin), expected)
    assert torch.equal(u_of(layer), u)


def test_compiled_and_eager_accesses_agree_on_a_copy(layer):
    torch.compiler.reset()
    layer.weight  # noqa: B018
    twins = copy.deepcopy(layer), copy.deepcopy(layer)
    compiled = torch.compile(lambda: twins[0].weight, backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(), twins[1].weight)
        assert torch.equal(u_of(twins[0]), u_of(twins[1]))


def discriminator(foreach=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh())
    return apply_spectral_norm(model.double(), foreach=foreach, power_iter="update")


def plain(model, x):
    return model(x)


def checkpointed(model, x):
    return checkpoint(model, x, use_reentrant=False)


def checkpointed_reentrant(model, x):
    return checkpoint(model, x.clone().requires_grad_(), use_reentrant=True)


def compiled(model, x):
    return torch.compile(model, backend="aot_eager", fullgraph=True)(x)


def compiled_in_checkpoint(model, x):
    return checkpoint(torch.compile(model, backend="aot_eager"), x, use_reentrant=False)


def checkpoint_in_compiled(model, x):
    body = torch.compile(lambda x: checkpointed(model, x), backend="aot_eager", fullgraph=True)
    return body(x)


WAYS = [checkpointed, checkpointed_reentrant, compiled, compiled_in_checkpoint]


def train(forward, model, steps=3):
    """Steps with D(real) and D(fake) before one backward; all gradients and the last state."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, fused=True)
    gradients = []
    for _ in range(steps):
        real, fake = torch.randn(2, 3, 6, dtype=torch.float64)
        (forward(model, real).mean() - forward(model, fake).square().mean()).backward()
        gradients += [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    return gradients + [buffer.clone() for buffer in model.state_dict().values()]


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # as torch imports itself
@pytest.mark.parametrize("foreach", [False, True], ids=["each", "foreach"])
@pytest.mark.parametrize("way", WAYS)
def test_recomputed_and_compiled_forwards_give_the_plain_gradients_bit_for_bit(way, foreach):
    torch.compiler.reset()
    expected = train(plain, discriminator(foreach))
    for value, reference in zip(train(way, discriminator(foreach)), expected, strict=True):
        assert torch.equal(value, reference)


def test_micro_batches_add_up_to_the_batch():
    x = torch.randn(8, 6, dtype=torch.float64)
    whole, parts = discriminator(), discriminator()
    whole(x).sum().backward()
    for part in x.split(2):
        parts(part).sum().backward()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-12)


def test_cached_weights_are_those_of_the_update(layer):
    with parametrize.cached():
        cached = layer.weight
    assert torch.equal(layer.weight, cached)


def test_an_unknown_policy_is_refused():
    layer = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="power_iter must be one of access, update, got 'step'"):
        spectral_norm(layer, power_iter="step")
    assert not parametrize.is_parametrized(layer)


def test_weights_that_lie_where_others_lay_are_new_weights():
    """As vector_to_parameters gives them: neither identity, version nor address tells."""
    for size in range(8, 72, 4):
        layer = spectral_norm(nn.Linear(size, size, bias=False), power_iter="update")
        parametrization = layer.parametrizations.weight[0]
        parameters = list(layer.parameters())
        vector = parameters_to_vector(parameters).clone()
        vector_to_parameters(vector.clone(), parameters)
        assert layer.weight is not None
        vector_to_parameters(5 * vector, parameters)
        vector_to_parameters(2 * vector, parameters)
        expected = iterated(layer)
        assert layer.weight is not None
        assert torch.equal(parametrization._u, expected), size


@pytest.mark.parametrize("compiled", [True, False])
def test_a_weight_that_is_assigned_is_iterated_for(layer, compiled):
    access = torch.compile(layer, backend="aot_eager") if compiled else layer
    x = torch.randn(2, 6)
    access(x)
    layer.weight = 3 * torch.randn(4, 6)
    expected = iterated(layer)
    access(x)
    torch.testing.assert_close(u_of(layer), expected)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "move",
    [nn.Module.double, nn.Module.bfloat16, lambda layer: layer._apply(torch.clone)],
    ids=["double", "bfloat16", "moved"],
)
def test_a_weight_that_is_moved_or_converted_is_iterated_for(layer, move, compiled):
    access = torch.compile(layer, backend="aot_eager") if compiled else layer
    access(torch.randn(2, 6))
    move(layer)
    expected = iterated(layer)
    access(torch.randn(2, 6, dtype=layer.bias.dtype))
    torch.testing.assert_close(u_of(layer), expected)


def test_a_model_that_gets_its_memory_in_inference_mode_is_due():
    with torch.device("meta"):
        layer = spectral_norm(nn.Linear(6, 4), power_iter="update")
    with torch.inference_mode():
        layer.to_empty(device="cpu")
    assert layer.parametrizations.weight[0].due == 1
