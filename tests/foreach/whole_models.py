"""Models normalized as a whole, and what the tests of this folder ask about them."""

import copy
from functools import partial

import torch
from torch import nn
from torch.nn.utils import parametrize

from snorm_triton import apply_spectral_norm, sigmas
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


# Fused ones change a weight without changing its version.
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "fused-sgd": partial(torch.optim.SGD, lr=0.1, fused=True),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "fused-adam": partial(torch.optim.Adam, lr=0.01, fused=True),
}


def images():
    return torch.randn(4, 2, 6, 6)


def parametrizations_of(model):
    kind = parametrize.ParametrizationList
    return [each[0] for each in model.modules() if isinstance(each, kind)]


def unsettled(model):
    """The model with random u and v, so that an iteration shows."""
    with torch.no_grad():
        for parametrization in parametrizations_of(model):
            for name, vector in parametrization.named_buffers():
                if name != "_sigma":
                    vector.normal_().div_(vector.norm())
    return model


def normalized(model, foreach=True, **options):
    return unsettled(apply_spectral_norm(model, foreach=foreach, **options))


def pair(model, **options):
    """The model normalized together and one by one, alike in everything else."""
    one_by_one = normalized(model, foreach=False, **options)
    return apply_spectral_norm(copy.deepcopy(one_by_one), foreach=True), one_by_one


def original_of(layer):
    return layer.parametrizations.weight.original


def state_of(layer):
    parametrization = layer.parametrizations.weight[0]
    return parametrization._u.clone(), parametrization._v.clone()


def step_from(layer, u, v):
    parametrization = layer.parametrizations.weight[0]
    return spectral_normalize(original_of(layer), u, v, dim=parametrization.dim)


def iterations(layer, before):
    """How many there were since ``before``, of a weight that has not changed."""
    u, v = before
    for count in range(7):
        if all(map(torch.equal, state_of(layer), (u, v))):
            return count
        _, u, v, _ = step_from(layer, u, v)
    raise AssertionError("the state is not that of so few iterations")


def read_twice(model, layer):
    """What two accesses of the layer's weight get during a forward of the model."""
    seen = []
    model(torch.randn(3, 6), lambda: seen.extend([layer.weight, layer.weight]))
    return seen


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


def scale_in_place(layer):
    with torch.no_grad():
        original_of(layer).mul_(1.5).add_(0.1)
