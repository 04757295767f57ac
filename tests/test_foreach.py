"""A model's weights normalized together: what an access during its forward gets, and others."""

import contextlib
import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.utils.checkpoint import checkpoint

from snorm_triton import apply_spectral_norm, remove_spectral_norm, sigmas, spectral_norm
from snorm_triton.functional import spectral_normalize


class Model(nn.Module):
    """Two layers, and what is to happen between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, x, meanwhile=None):
        x = self.first(x).relu()
        if meanwhile is not None:
            meanwhile()
        return self.last(x)


class Checkpointed(Model):
    def __init__(self, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x):
        x = checkpoint(self.first, x, use_reentrant=self.use_reentrant).relu()
        return checkpoint(self.last, x, use_reentrant=self.use_reentrant)


class TwiceUsed(Model):
    def forward(self, x):
        return self.last(self.first(x) + self.first(x.relu()))


class Doubled(nn.Module):
    """A model inside a model."""

    def __init__(self):
        super().__init__()
        self.inner = Model()
        self.head = nn.Linear(5, 4)

    def forward(self, x, meanwhile=None):
        x = self.inner(x)
        if meanwhile is not None:
            meanwhile()
        return self.head(x)


class MixedDtypes(nn.Module):
    def __init__(self):
        super().__init__()
        dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float32)
        self.layers = nn.ModuleList(nn.Linear(6, 6, dtype=dtype) for dtype in dtypes)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.to(layer.bias.dtype)).relu()
        return x


class Odd(nn.Module):
    """A vector, a complex and an empty weight, and one like any other."""

    def __init__(self):
        super().__init__()
        self.vector = spectral_norm(nn.LayerNorm(6))
        self.complex = spectral_norm(nn.Linear(6, 5, dtype=torch.complex64))
        self.empty = nn.Linear(5, 1)
        self.empty.weight, self.empty.bias = nn.Parameter(torch.empty(0, 5)), None
        spectral_norm(self.empty)
        self.last = spectral_norm(nn.Linear(5, 4))

    def forward(self, x):
        x = self.complex(self.vector(x).to(torch.complex64)).abs()
        return self.last(x) + self.empty(x).sum()


class TwoHeads(nn.Module):
    """Two outputs that share no layer."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(6, 5)
        self.right = nn.Linear(6, 5)

    def forward(self, x):
        return self.left(x), self.right(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x).relu())


def discriminator():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(4, 3, 2),
        nn.LeakyReLU(),
        nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
        nn.LeakyReLU(),
        nn.Linear(3, 1),
    )


def images():
    return torch.randn(4, 2, 6, 6)


def parametrizations_of(model):
    kind = parametrize.ParametrizationList
    return [each[0] for each in model.modules() if isinstance(each, kind)]


def unsettled(model):
    """The model with random u and v, so that an iteration shows."""
    with torch.no_grad():
        for parametrization in parametrizations_of(model):
            for vector in (parametrization._u, parametrization._v):
                vector.normal_().div_(vector.norm())
    return model


def normalized(model, foreach=True, **options):
    return unsettled(apply_spectral_norm(model, foreach=foreach, **options))


def pair(model, **options):
    """The model normalized together and one by one, alike in everything else."""
    one_by_one = normalized(model, foreach=False, **options)
    return apply_spectral_norm(copy.deepcopy(one_by_one), foreach=True), one_by_one


def state_of(layer):
    parametrization = layer.parametrizations.weight[0]
    return parametrization._u.clone(), parametrization._v.clone()


def step_from(layer, u, v):
    parametrization = layer.parametrizations.weight[0]
    weight = layer.parametrizations.weight.original
    return spectral_normalize(weight, u, v, dim=parametrization.dim)


def iterations(layer, before):
    """How many there were since ``before``, of a weight that has not changed."""
    u, v = before
    for count in range(6):
        if all(map(torch.equal, state_of(layer), (u, v))):
            return count
        _, u, v, _ = step_from(layer, u, v)
    raise AssertionError("the state is not that of so few iterations")


def assert_same_state(model, twin):
    ours, theirs = model.state_dict(), twin.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
    for key, value in sigmas(model).items():
        assert torch.equal(value, sigmas(twin)[key]), key


def assert_same_gradients(model, twin):
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


def assert_nothing_is_prepared(model):
    assert all(getattr(each, "prepared", None) is None for each in parametrizations_of(model))


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hooks in (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._forward_hooks_always_called,
        )
        for hook in hooks
    ]


def hinge(real, fake):
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def assert_alike(together, one_by_one, *inputs):
    """A forward and a backward of each come out the same to the bit."""
    outputs = []
    for model in (together, one_by_one):
        model.zero_grad()
        output = model(*inputs)
        if output.requires_grad:
            output.square().sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    assert_same_gradients(together, one_by_one)
    assert_same_state(together, one_by_one)
    assert_nothing_is_prepared(together)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=True),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=True),
    ],
    ids=["sgd", "fused-sgd", "adam", "fused-adam"],
)
def test_training_is_the_same_to_the_bit_as_one_by_one(optimizer):
    together, one_by_one = pair(discriminator())
    optimizers = [optimizer(model.parameters()) for model in (together, one_by_one)]
    for _ in range(4):
        real, fake = images(), images()
        losses = []
        for model, each in zip((together, one_by_one), optimizers, strict=True):
            each.zero_grad()
            losses.append(hinge(model(real), model(fake)))
            losses[-1].backward()
        assert torch.equal(*losses)
        assert_same_gradients(together, one_by_one)
        for each in optimizers:
            each.step()
        assert_same_state(together, one_by_one)


def test_the_input_gets_the_same_gradient():
    together, one_by_one = pair(discriminator())
    x = images().requires_grad_()
    grads = [torch.autograd.grad(model(x).sum(), x)[0] for model in (together, one_by_one)]
    assert torch.equal(*grads)


def test_each_backend_trains_as_one_by_one(backend, relative_error):
    together, one_by_one = pair(discriminator(), backend=backend)
    for _ in range(2):
        real, fake = images(), images()
        for model in (together, one_by_one):
            model.zero_grad()
            hinge(model(real), model(fake)).backward()
        for ours, theirs in zip(together.parameters(), one_by_one.parameters(), strict=True):
            assert relative_error(ours.grad, theirs.grad) < 1e-5
        for key, value in together.state_dict().items():
            assert relative_error(value, one_by_one.state_dict()[key]) < 1e-5


class Weights(nn.Module):
    """The sum of all cubed weights, of rows of every kind: long ones, runs, permuted columns."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(136, 35),
                nn.Linear(35, 3),
                nn.Conv2d(8, 3, 3).to(memory_format=torch.channels_last),
                nn.ConvTranspose2d(5, 9, 4),
                nn.ConvTranspose2d(3, 4, 3),
            ]
        )

    def forward(self):
        return sum(layer.weight.pow(3).sum() for layer in self.layers)


@pytest.mark.parametrize("n_power_iterations", [1, 3])
def test_every_kind_of_row_comes_out_as_one_by_one(backend, n_power_iterations, relative_error):
    options = {"backend": backend, "n_power_iterations": n_power_iterations}
    together, one_by_one = pair(Weights(), **options)
    sums = [model() for model in (together, one_by_one)]
    assert relative_error(*sums) < 1e-5
    for each in sums:
        each.backward()
    for ours, theirs in zip(together.layers, one_by_one.layers, strict=True):
        grads = [x.parametrizations.weight.original.grad for x in (ours, theirs)]
        assert relative_error(*grads) < 1e-5
    for key, value in together.state_dict().items():
        assert relative_error(value, one_by_one.state_dict()[key]) < 1e-5


def test_a_backend_iterates_once_a_forward(backend):
    model = normalized(Model(), backend=backend)
    seen = []
    model(torch.randn(3, 6), lambda: seen.extend([model.last.weight, model.last.weight]))
    assert seen[0] is seen[1]


def test_every_access_of_a_forward_gets_the_same_weight():
    model = normalized(Model())
    before = state_of(model.first), state_of(model.last)
    seen = []

    def read():
        seen.extend([model.first.weight, model.first.weight, model.last.weight, model.last.weight])

    model(torch.randn(3, 6), read)
    assert seen[0] is seen[1]
    assert seen[2] is seen[3]
    assert iterations(model.first, before[0]) == 1
    assert iterations(model.last, before[1]) == 1


def test_each_forward_iterates_once():
    model = normalized(Model())
    before = state_of(model.last)
    for count in range(1, 4):
        model(torch.randn(3, 6))
        assert iterations(model.last, before) == count


def test_a_layer_used_twice_iterates_once():
    model = normalized(TwiceUsed())
    before = state_of(model.first)
    model(torch.randn(3, 6)).sum().backward()
    assert iterations(model.first, before) == 1


def test_a_layer_used_twice_gets_the_gradient_of_both_uses(relative_error):
    model = normalized(TwiceUsed())
    x = torch.randn(3, 6)
    first, last = (step_from(layer, *state_of(layer)) for layer in (model.first, model.last))
    hidden = sum(nn.functional.linear(y, first.weight_sn, model.first.bias) for y in (x, x.relu()))
    output = nn.functional.linear(hidden, last.weight_sn, model.last.bias)
    original = model.first.parametrizations.weight.original
    (expected,) = torch.autograd.grad(output.square().sum(), original)
    model(x).square().sum().backward()
    assert relative_error(original.grad, expected) < 1e-6


@pytest.mark.parametrize("n_power_iterations", [2, 3])
def test_a_forward_makes_as_many_iterations_as_asked_for(n_power_iterations):
    model = normalized(Model(), n_power_iterations=n_power_iterations)
    before = state_of(model.last)
    model(torch.randn(3, 6))
    assert iterations(model.last, before) == n_power_iterations


def test_a_single_layer_is_a_model():
    together, one_by_one = pair(nn.Linear(6, 5))
    assert_alike(together, one_by_one, torch.randn(3, 6))


def test_an_access_outside_the_forward_iterates():
    model = normalized(Model())
    model(torch.randn(3, 6))
    before = state_of(model.last)
    expected = step_from(model.last, *before).weight_sn
    assert torch.equal(model.last.weight, expected)
    assert model.last.weight is not model.last.weight
    assert iterations(model.last, before) == 3


def test_a_submodule_called_alone_iterates():
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    for _ in range(2):
        assert torch.equal(together.first(x), one_by_one.first(x))
        assert torch.equal(together(x), one_by_one(x))
        assert torch.equal(together.first(x), one_by_one.first(x))
    assert_same_state(together, one_by_one)


def test_accesses_between_a_forward_and_its_backward_change_nothing():
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    for model in (together, one_by_one):
        loss = model(x).square().sum()
        model.last.weight, model.first(x)
        loss.backward()
    assert_same_gradients(together, one_by_one)
    assert_same_state(together, one_by_one)


def test_nothing_is_left_prepared_after_a_forward():
    model = normalized(Model())
    prepared = []
    model(
        torch.randn(3, 6), lambda: prepared.append(model.last.parametrizations.weight[0].prepared)
    )
    assert prepared[0] is not None
    assert_nothing_is_prepared(model)


def test_nothing_is_left_prepared_when_the_forward_raises():
    model = normalized(Model())

    def fail():
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        model(torch.randn(3, 6), fail)
    assert_nothing_is_prepared(model)


def interrupt():
    raise KeyboardInterrupt


def test_an_access_after_an_interrupt_iterates():
    model = normalized(Model())
    before = state_of(model.last)
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(3, 6), interrupt)
    assert model.last.weight is not model.last.weight
    assert iterations(model.last, before) == 3


def test_accesses_after_an_interrupt_have_graphs_of_their_own():
    model = normalized(Model())
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(3, 6), interrupt)
    weights = model.last.weight, model.last.weight
    for weight in weights:
        weight.square().sum().backward()
    assert torch.isfinite(model.last.parametrizations.weight.original.grad).all()


def test_a_forward_after_an_interrupt_prepares_anew():
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    with pytest.raises(KeyboardInterrupt):
        together(x, interrupt)
    one_by_one(x)
    assert_alike(together, one_by_one, x)


def scale_in_place(weight):
    with torch.no_grad():
        weight.mul_(1.5).add_(0.1)


def swap_data(weight):
    weight.data = weight.data * 1.5 + 0.1


def step_with(optimizer):
    def step(weight):
        weight.grad = torch.randn_like(weight)
        optimizer([weight]).step()
        weight.grad = None

    return step


@pytest.mark.parametrize(
    "change",
    [
        scale_in_place,
        swap_data,
        step_with(lambda weights: torch.optim.SGD(weights, lr=0.1)),
        step_with(lambda weights: torch.optim.SGD(weights, lr=0.1, fused=True)),
        step_with(lambda weights: torch.optim.Adam(weights, lr=0.1)),
        step_with(lambda weights: torch.optim.Adam(weights, lr=0.1, fused=True)),
    ],
    ids=["in-place", "data", "sgd", "fused-sgd", "adam", "fused-adam"],
)
def test_a_weight_changed_during_the_forward_is_normalized_anew(change):
    model = normalized(Model())
    original = model.last.parametrizations.weight.original
    seen = []

    def meanwhile():
        state = state_of(model.last)
        change(original)
        expected = step_from(model.last, *state).weight_sn
        seen.extend([model.last.weight, expected])

    model(torch.randn(3, 6), meanwhile)
    assert torch.equal(*seen)
    seen[0].square().sum().backward()
    assert original.grad is not None


def test_a_weight_assigned_during_the_forward_is_normalized_anew():
    model = normalized(Model())
    seen = []

    def meanwhile():
        state = state_of(model.last)
        model.last.weight = torch.randn(5, 8)
        seen.extend([model.last.weight, step_from(model.last, *state).weight_sn])

    model(torch.randn(3, 6), meanwhile)
    assert torch.equal(*seen)


def test_a_parameter_put_in_its_place_during_the_forward_gets_the_gradient():
    model = normalized(Model())
    parametrizations = model.last.parametrizations.weight
    original = parametrizations.original

    def meanwhile():
        parametrizations.original = nn.Parameter(original.detach())

    model(torch.randn(3, 6), meanwhile).sum().backward()
    assert parametrizations.original is not original
    assert parametrizations.original.grad is not None
    assert original.grad is None


def evaluating(model):
    model.eval()
    return contextlib.nullcontext()


def frozen(model):
    model.requires_grad_(False)
    return contextlib.nullcontext()


def partly_frozen(model):
    model.first.requires_grad_(False)
    return contextlib.nullcontext()


def partly_evaluating(model):
    model.first.eval()
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    "mode",
    [
        lambda model: torch.no_grad(),
        lambda model: torch.inference_mode(),
        lambda model: torch.autocast("cpu", torch.bfloat16),
        evaluating,
        frozen,
        partly_frozen,
        partly_evaluating,
    ],
    ids=["no-grad", "inference", "autocast", "eval", "frozen", "partly-frozen", "partly-eval"],
)
def test_every_mode_gives_what_one_by_one_gives(mode):
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    for _ in range(2):
        with mode(together), mode(one_by_one):
            assert_alike(together, one_by_one, x)
    for model in (together, one_by_one):
        model.train().requires_grad_(True)
    assert_alike(together, one_by_one, x)


def test_an_evaluated_model_iterates_where_it_is_asked_to():
    together, one_by_one = pair(Model().eval(), power_iter_on_eval=True)
    before = state_of(together.last)
    assert_alike(together, one_by_one, torch.randn(3, 6))
    assert iterations(together.last, before) == 1


def test_an_evaluated_model_does_not_iterate():
    model = normalized(Model()).eval()
    before = state_of(model.last)
    model(torch.randn(3, 6))
    assert iterations(model.last, before) == 0


def test_gradients_enabled_inside_a_forward_without_them_find_a_graph():
    model = normalized(Model())
    seen = []

    def meanwhile():
        seen.append(model.last.weight)
        with torch.enable_grad():
            seen.append(model.last.weight)

    with torch.no_grad():
        model(torch.randn(3, 6), meanwhile)
    assert not seen[0].requires_grad
    seen[1].square().sum().backward()
    assert model.last.parametrizations.weight.original.grad is not None


def test_a_weight_frozen_during_the_forward_has_no_graph():
    model = normalized(Model())
    original = model.last.parametrizations.weight.original
    seen = []

    def meanwhile():
        original.requires_grad_(False)
        seen.append(model.last.weight)
        original.requires_grad_(True)

    model(torch.randn(3, 6), meanwhile)
    assert not seen[0].requires_grad


def test_a_layer_set_to_evaluation_during_the_forward_does_not_iterate_again():
    model = normalized(Model())
    before = state_of(model.last)
    seen = []

    def meanwhile():
        seen.append(model.last.weight)
        model.last.eval()
        seen.append(model.last.weight)

    model(torch.randn(3, 6), meanwhile)
    assert seen[0] is not seen[1]
    assert iterations(model.last, before) == 1


def test_layers_of_several_dtypes_come_out_as_one_by_one():
    together, one_by_one = pair(MixedDtypes())
    for _ in range(2):
        assert_alike(together, one_by_one, torch.randn(3, 6))


def test_tied_weights_come_out_as_one_by_one():
    together, one_by_one = pair(Tied())
    weights = [layer.parametrizations.weight for layer in (together.first, together.last)]
    assert weights[0].original is weights[1].original
    for _ in range(2):
        assert_alike(together, one_by_one, torch.randn(3, 6))


def test_a_layer_added_later_is_normalized_with_the_others():
    together, one_by_one = pair(Model())
    added = unsettled(spectral_norm(nn.Linear(5, 5)))
    for model in (together, one_by_one):
        model.last = nn.Sequential(model.last, copy.deepcopy(added))
    before = state_of(together.last[1])
    seen = []
    together(torch.randn(3, 6), lambda: seen.extend([together.last[1].weight] * 2))
    assert seen[0] is seen[1]
    assert iterations(together.last[1], before) == 1
    one_by_one(torch.randn(3, 6))
    assert_alike(together, one_by_one, torch.randn(3, 6))


def test_a_layer_taken_out_is_left_alone():
    model = normalized(Model())
    first, model.first = model.first, nn.Linear(6, 8)
    before = state_of(first)
    model(torch.randn(3, 6)).sum().backward()
    assert iterations(first, before) == 0


@pytest.mark.parametrize(
    "remove",
    [
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        remove_spectral_norm,
        lambda layer: remove_spectral_norm(layer, leave_parametrized=False),
    ],
    ids=["torch", "ours", "ours-before"],
)
def test_a_layer_may_lose_its_normalization(remove):
    together, one_by_one = pair(Model())
    for model in (together, one_by_one):
        model(torch.ones(3, 6))
        remove(model.first)
    assert not parametrize.is_parametrized(together.first)
    assert_alike(together, one_by_one, torch.randn(3, 6))


def test_recursive_removal_leaves_no_hooks():
    model = normalized(Doubled())
    apply_spectral_norm(model.inner, foreach=True)
    assert hooks_of(model)
    remove_spectral_norm(model, recursive=True)
    assert not hooks_of(model)


def test_recursive_removal_leaves_the_hooks_of_others():
    model = normalized(Model())
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append("before"))
    model.register_forward_hook(
        lambda module, args, output: calls.append("after"), always_call=True
    )
    remove_spectral_norm(model, recursive=True)
    model(torch.randn(3, 6))
    assert calls == ["before", "after"]


def test_the_spectral_norm_of_torch_lives_beside_it():
    model = Model()
    torch_spectral_norm(model.last)
    one_by_one = apply_spectral_norm(model, foreach=False)
    together = apply_spectral_norm(copy.deepcopy(model), foreach=True)
    for _ in range(2):
        assert_alike(together, one_by_one, torch.randn(3, 6))


@pytest.mark.parametrize("inner_first", [True, False])
def test_a_model_inside_a_model_iterates_once(inner_first):
    model = Doubled()
    order = [model.inner, model] if inner_first else [model, model.inner]
    for each in order:
        apply_spectral_norm(each, foreach=True)
    unsettled(model)
    before = state_of(model.inner.last), state_of(model.head)
    seen = []

    def meanwhile():
        seen.extend([model.inner.last.weight, model.inner.last.weight])

    model(torch.randn(3, 6), meanwhile).sum().backward()
    assert seen[0] is seen[1]
    assert iterations(model.inner.last, before[0]) == 1
    assert iterations(model.head, before[1]) == 1
    assert_nothing_is_prepared(model)


def test_an_inner_model_used_twice_by_an_outer_one_iterates_once():
    inner = apply_spectral_norm(nn.Linear(6, 6), foreach=True)
    model = nn.Sequential(inner, nn.ReLU(), inner)
    apply_spectral_norm(model, foreach=True)
    apply_spectral_norm(inner, foreach=True)
    unsettled(model)
    before = state_of(inner)
    model(torch.randn(3, 6)).sum().backward()
    assert iterations(inner, before) == 1
    inner(torch.randn(3, 6))
    assert iterations(inner, before) == 2


def test_a_second_model_that_shares_a_layer_may_run_inside_the_first():
    model = normalized(Model())
    other = apply_spectral_norm(nn.Sequential(model.last), foreach=True)
    before = state_of(model.last)
    x = torch.randn(3, 8)
    model(torch.randn(3, 6), lambda: other(x)).sum().backward()
    assert iterations(model.last, before) == 1
    other(x)
    assert iterations(model.last, before) == 2
    assert_nothing_is_prepared(model)


def test_applying_again_adds_no_hooks():
    model = normalized(Model())
    hooks = len(hooks_of(model))
    for foreach in (True, None, True):
        apply_spectral_norm(model, foreach=foreach)
        assert len(hooks_of(model)) == hooks


def test_a_cached_weight_iterates_once_over_two_forwards():
    model = normalized(Model())
    before = state_of(model.last)
    with parametrize.cached():
        outputs = [model(torch.randn(3, 6)) for _ in range(2)]
    assert iterations(model.last, before) == 1
    sum(output.square().sum() for output in outputs).backward()
    model(torch.randn(3, 6))
    assert iterations(model.last, before) == 2


def run_checkpointed(model, x):
    output = model(x)
    before = [state_of(layer) for layer in (model.first, model.last)]
    output.square().sum().backward()
    after = [state_of(layer) for layer in (model.first, model.last)]
    assert all(
        torch.equal(a, b)
        for pairs in zip(before, after, strict=True)
        for a, b in zip(*pairs, strict=True)
    )
    return output


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("foreach", [True, False])
def test_checkpointed_layers_recompute_what_they_computed(use_reentrant, foreach):
    model = normalized(Checkpointed(use_reentrant), foreach=foreach)
    plain = normalized(Model(), foreach=foreach)
    plain.load_state_dict(model.state_dict())
    for _ in range(2):
        x = torch.randn(3, 6)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        model.zero_grad()
        plain.zero_grad()
        output = run_checkpointed(model, inputs[0])
        expected = plain(inputs[1])
        expected.square().sum().backward()
        assert torch.equal(output, expected)
        assert torch.equal(inputs[0].grad, inputs[1].grad)
        assert_same_gradients(model, plain)
        assert_same_state(model, plain)
    assert_nothing_is_prepared(model)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("foreach", [True, False])
def test_a_checkpointed_model_recomputes_what_it_computed(use_reentrant, foreach):
    model = normalized(Model(), foreach=foreach)
    plain = copy.deepcopy(model)
    x = torch.randn(3, 6, requires_grad=True)
    before = state_of(model.last)
    output = checkpoint(model, x, use_reentrant=use_reentrant)
    output.square().sum().backward()
    assert iterations(model.last, before) == 1
    plain(x).square().sum().backward()
    assert_same_gradients(model, plain)
    assert_same_state(model, plain)
    assert_nothing_is_prepared(model)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputation_inside_a_forward_leaves_what_was_prepared_alone(use_reentrant):
    model = normalized(Model())
    x = torch.randn(3, 6, requires_grad=True)
    earlier = checkpoint(
        model.last, torch.randn(3, 8).requires_grad_(), use_reentrant=use_reentrant
    )
    before = state_of(model.last)
    model(x, lambda: earlier.sum().backward()).sum().backward()
    assert iterations(model.last, before) == 1


def test_a_stacked_normalization_is_left_to_its_accesses():
    model = Model()
    spectral_norm(spectral_norm(model.first, backend="torch"), n_power_iterations=2)
    together, one_by_one = pair(model)
    seen = []
    assert_alike(together, one_by_one, torch.randn(3, 6))
    together(
        torch.randn(3, 6),
        lambda: seen.extend(each.prepared for each in together.first.parametrizations.weight),
    )
    assert seen == [None, None]


def test_vectors_complex_and_empty_weights_come_out_as_one_by_one():
    one_by_one = Odd()
    together = apply_spectral_norm(copy.deepcopy(one_by_one), foreach=True)
    for _ in range(2):
        assert_alike(together, one_by_one, torch.randn(3, 6))


def test_a_lazy_layer_joins_at_its_first_forward():
    model = apply_spectral_norm(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LazyLinear(5)), foreach=True
    )
    model(torch.randn(3, 6))
    before = state_of(unsettled(model)[2])
    model(torch.randn(3, 6)).sum().backward()
    assert iterations(model[2], before) == 1


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


duplicates = pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])


@duplicates
@pytest.mark.parametrize("inside", [True, False], ids=["inside-a-forward", "outside"])
def test_a_copy_is_a_model_of_its_own(duplicate, inside):
    model = normalized(Model())
    x = torch.randn(3, 6)
    copies = []
    model(x, (lambda: copies.append(duplicate(model))) if inside else None)
    twin = copies[0] if inside else duplicate(model)
    assert_nothing_is_prepared(twin)
    assert_same_state(model, twin)

    before, twin_before = state_of(model.last), state_of(twin.last)
    twin(x).sum().backward()
    assert iterations(twin.last, twin_before) == 1
    assert iterations(model.last, before) == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    model(x)
    assert_same_state(model, twin)


@duplicates
def test_a_copy_prepares_its_own_weights(duplicate):
    model = normalized(Model())
    twin = duplicate(model)
    seen = []
    twin(torch.randn(3, 6), lambda: seen.extend([twin.last.weight, twin.last.weight]))
    assert seen[0] is seen[1]


@duplicates
def test_a_copy_may_run_inside_the_forward_of_the_original(duplicate):
    model = normalized(Model())
    x = torch.randn(3, 6)
    twin = duplicate(model)
    before, twin_before = state_of(model.last), state_of(twin.last)
    model(x, lambda: twin(x)).sum().backward()
    assert iterations(model.last, before) == 1
    assert iterations(twin.last, twin_before) == 1


@duplicates
def test_removal_from_a_copy_leaves_the_original(duplicate):
    model = normalized(Model())
    hooks = len(hooks_of(model))
    twin = remove_spectral_norm(duplicate(model), recursive=True)
    assert not hooks_of(twin)
    assert len(hooks_of(model)) == hooks


def test_another_thread_gets_a_weight_of_its_own():
    model = normalized(Model())
    before = state_of(model.last)
    seen = []

    def meanwhile():
        seen.append(model.last.weight)
        thread = threading.Thread(target=lambda: seen.append(model.last.weight))
        thread.start()
        thread.join()
        seen.append(model.last.weight)

    model(torch.randn(3, 6), meanwhile).sum().backward()
    assert seen[0] is seen[2]
    assert seen[1] is not seen[0]
    assert iterations(model.last, before) == 2
    seen[1].sum().backward()


def nodes_of(model, x):
    nodes = []
    model(x, lambda: nodes.extend([model.first.weight.grad_fn, model.last.weight.grad_fn]))
    return nodes


def test_a_small_model_is_one_node_of_the_graph():
    first, last = nodes_of(normalized(Model()), torch.randn(3, 6))
    assert first is last
    assert first is not None


@pytest.mark.parametrize("bucket_bytes", [1, 200])
def test_weights_beyond_a_bucket_have_a_node_of_their_own(monkeypatch, bucket_bytes):
    monkeypatch.setattr("snorm_triton.functional.BUCKET_BYTES", bucket_bytes)
    first, last = nodes_of(normalized(Model()), torch.randn(3, 6))
    assert first is not last


@pytest.mark.parametrize("bucket_bytes", [1, 300, 600])
def test_the_size_of_a_bucket_does_not_change_gradients(monkeypatch, bucket_bytes):
    together, one_by_one = pair(discriminator())
    monkeypatch.setattr("snorm_triton.functional.BUCKET_BYTES", bucket_bytes)
    for _ in range(2):
        assert_alike(together, one_by_one, images())


def test_a_gradient_penalty_is_the_same_as_one_by_one():
    together, one_by_one = pair(discriminator())
    x = images()
    for model in (together, one_by_one):
        inputs = x.clone().requires_grad_()
        output = model(inputs)
        (grad,) = torch.autograd.grad(output.sum(), inputs, create_graph=True)
        penalty = (grad.flatten(1).norm(dim=1) - 1).square().mean()
        (penalty + output.square().mean()).backward()
    assert_same_gradients(together, one_by_one)
    assert_same_state(together, one_by_one)


def test_a_penalty_on_the_gradient_of_the_weights_is_the_same_as_one_by_one():
    together, one_by_one = pair(discriminator())
    x = images()
    for model in (together, one_by_one):
        loss = model(x).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        sum(grad.square().sum() for grad in grads).backward()
    assert_same_gradients(together, one_by_one)


def test_a_graph_that_is_retained_gives_the_same_twice():
    model = normalized(Model())
    loss = model(torch.randn(3, 6)).square().sum()
    parameters = list(model.parameters())
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    twice = torch.autograd.grad(loss, parameters)
    assert all(map(torch.equal, once, twice))


def test_an_unused_layer_gets_no_gradient():
    model = Model()
    model.unused = nn.Linear(4, 4)
    normalized(model)
    model(torch.randn(3, 6)).sum().backward()
    assert model.unused.parametrizations.weight.original.grad is None
    assert model.first.parametrizations.weight.original.grad is not None


@pytest.mark.parametrize("foreach", [True, False])
def test_outputs_that_share_no_layer_may_be_differentiated_one_after_the_other(foreach):
    model = normalized(TwoHeads(), foreach=foreach)
    for output in model(torch.randn(3, 6)):
        output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("foreach", [True, False])
def test_a_step_on_one_output_leaves_the_gradient_of_another(foreach):
    model = normalized(TwoHeads(), foreach=foreach)
    left, right = model(torch.randn(3, 6))
    left.square().sum().backward()
    torch.optim.SGD(model.left.parameters(), lr=0.1).step()
    right.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("foreach", [True, False])
def test_a_weight_changed_before_its_backward_is_refused(foreach):
    model = normalized(Model(), foreach=foreach)
    output = model(torch.randn(3, 6))
    scale_in_place(model.first.parametrizations.weight.original)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_substituted_weights_get_the_gradients():
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    name = "first.parametrizations.weight.original"
    weight = torch.randn(8, 6)
    grads = []
    for model in (together, one_by_one):
        substitute = weight.clone().requires_grad_()
        torch.func.functional_call(model, {name: substitute}, x).square().sum().backward()
        grads.append(substitute.grad)
        assert model.first.parametrizations.weight.original.grad is None
    assert torch.equal(*grads)
    assert_same_state(together, one_by_one)
    assert_nothing_is_prepared(together)


def test_the_forward_of_a_moved_model_finds_its_new_weights():
    together, one_by_one = pair(Model())
    for model in (together, one_by_one):
        model(torch.randn(3, 6))
        model.double()
    assert_alike(together, one_by_one, torch.randn(3, 6).double())


@pytest.mark.parametrize("foreach", [None, False])
def test_weights_on_the_cpu_are_left_to_their_accesses_unless_asked_for(foreach):
    model = normalized(Model(), foreach=foreach)
    before = state_of(model.last)
    seen = []

    def meanwhile():
        seen.append(model.last.parametrizations.weight[0].prepared)
        assert model.last.weight is not model.last.weight

    model(torch.randn(3, 6), meanwhile)
    assert seen == [None]
    assert iterations(model.last, before) == 3


@pytest.mark.parametrize("foreach", ["yes", "auto", 1, 0])
def test_foreach_must_be_true_false_or_none(foreach):
    model = Model()
    with pytest.raises(ValueError, match="foreach"):
        apply_spectral_norm(model, foreach=foreach)
    assert not parametrize.is_parametrized(model.first)
    assert not hooks_of(model)
