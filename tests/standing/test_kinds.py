"""Which accesses are made again, and what is kept for it."""

import copy
import pickle
import weakref
from unittest import mock

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from snorm_triton import SpectralNormParametrization, spectral_norm
from snorm_triton.parametrizations import spectral_norm as parametrization_module
from standing_layers import layer_of, original_of, step, train, x_of


def test_training_steps_after_the_first_make_it_again(backend):
    layer = layer_of(backend=backend)
    train(layer)
    standing = layer.parametrizations.weight[0].standing
    with mock.patch.object(standing, "_make", side_effect=standing._make) as make:
        for _ in range(3):
            step(layer)
            train(layer)
    assert make.call_count == 3


def noted(make, replays):
    def make_and_note(*args):
        replays.append(args[-1])
        return make(*args)

    return make_and_note


def test_replays_are_made_again(backend):
    def trained():
        layer, replays = layer_of(backend=backend, power_iter="update"), []
        for _ in range(4):
            step(layer)
            real, fake = layer(x_of(layer)), layer(x_of(layer).neg())
            (real.square().sum() - fake.sum()).backward()
            standing = layer.parametrizations.weight[0].standing
            if standing is not None and not replays:
                standing._make = noted(standing._make, replays)
        return layer, replays

    layer, replays = trained()
    assert replays == 3 * [False, True]
    with mock.patch.object(parametrization_module, "standing_access", return_value=None):
        looked_at, _ = trained()
    assert torch.equal(original_of(layer).grad, original_of(looked_at).grad)
    for name in ("_u", "_v", "_sigma"):
        one, other = (getattr(x.parametrizations.weight[0], name) for x in (layer, looked_at))
        assert torch.equal(one, other)


def test_what_is_to_be_looked_at_each_time():
    layer = layer_of(scale="learned")
    for _ in range(3):
        train(layer)
        step(layer)
    assert layer.parametrizations.weight[0].standing is None


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_weights_that_have_no_elements_or_no_memory():
    empty = spectral_norm(nn.Linear(0, 3))
    nowhere = layer_of().to("meta")
    for _ in range(3):
        assert empty(torch.ones(2, 0)).shape == (2, 3)
        assert nowhere(torch.ones(2, 4, 5, device="meta")).shape == (2, 6, 3)


@pytest.mark.filterwarnings("error")
def test_complex_weights():
    layer = spectral_norm(nn.Linear(4, 3, dtype=torch.complex64))
    for _ in range(3):
        layer(torch.ones(2, 4, dtype=torch.complex64)).abs().sum().backward()
    exact = torch.linalg.matrix_norm(original_of(layer), 2)
    assert layer.parametrizations.weight[0].sigma.isclose(exact, rtol=1e-3)


def test_a_weight_that_is_negated_where_it_lies(backend):
    layer = layer_of(backend=backend)
    train(layer)
    weight = original_of(layer)
    weight.data = torch._neg_view(weight.data)
    assert torch.cosine_similarity(layer.weight.flatten(), weight.flatten(), dim=0) > 0.99


class Paused(SpectralNormParametrization):
    """Iterates as long as it is told to."""

    paused = False

    @property
    def iterates(self):
        return super().iterates and not self.paused


def test_a_subclass_may_decide_otherwise_each_time():
    layer = nn.Linear(6, 4)
    parametrization = Paused(layer.weight)
    parametrize.register_parametrization(layer, "weight", parametrization)
    for _ in range(3):
        layer(torch.ones(2, 6)).sum().backward()
        step(layer)
    parametrization.paused = True
    before = parametrization._u.clone()
    layer(torch.ones(2, 6)).sum().backward()
    assert torch.equal(parametrization._u, before)


@pytest.mark.parametrize("stable_fp32", [True, False])
def test_weights_in_half_precision(stable_fp32):
    layer = layer_of(stable_fp32=stable_fp32).to(torch.bfloat16)
    layer.parametrizations.weight[0]._v.normal_()  # so that iterations go on
    twin = copy.deepcopy(layer)
    for _ in range(5):
        train(layer)
    with mock.patch.object(parametrization_module, "standing_access", return_value=None):
        for _ in range(5):
            train(twin)
    for one, other in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(original_of(layer).grad, original_of(twin).grad)


def test_the_dtype_of_autocast_ends_with_it():
    layer = layer_of(autocast_output=True)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            train(layer)
            assert layer.weight.dtype == torch.bfloat16
        train(layer)
        assert layer.weight.dtype == torch.float32


def test_autocast_leaves_it_in_its_dtype():
    layer, twin = (spectral_norm(nn.ConvTranspose1d(512, 256, 4)) for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    for each in (layer, twin):
        each(torch.ones(1, 512, 5)).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.weight
    assert torch.equal(weight, twin.weight)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_looks_for_itself(duplicate):
    layer = layer_of()
    train(layer)
    twin = duplicate(layer)
    assert twin.parametrizations.weight[0].standing is None
    before = layer.parametrizations.weight[0]._u.clone()
    train(twin)
    assert torch.equal(layer.parametrizations.weight[0]._u, before)


def test_what_is_of_one_forward_is_not_kept():
    layer = layer_of()
    others = {name: nn.Parameter(each.detach().clone()) for name, each in layer.named_parameters()}
    others |= {name: each.clone() for name, each in layer.named_buffers()}
    functional_call(layer, others, x_of(layer)).sum().backward()
    held = list(map(weakref.ref, others.values()))
    del others
    assert not any(each() is not None for each in held)
