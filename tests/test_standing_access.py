"""An access that is as the last one is made again without a look at what decides it."""

import copy
import pickle
import weakref
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from snorm_triton import SpectralNormParametrization, apply_spectral_norm, spectral_norm
from snorm_triton.parametrizations import spectral_norm as parametrization_module
from snorm_triton.parametrizations.base import evaluating

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def layer_of(**options):
    torch.manual_seed(0)
    return spectral_norm(nn.Conv1d(4, 6, 3), **options)


def x_of(layer):
    original = layer.parametrizations.weight.original
    return torch.linspace(-1, 1, 40).view(2, 4, 5).to(original.dtype)


def train(layer):
    layer(x_of(layer)).square().sum().backward()


def original_of(layer):
    return layer.parametrizations.weight.original


def step(layer):
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def fused_step(layer):
    torch.optim.Adam(layer.parameters(), lr=0.1, fused=True).step()


def swap_data(layer):
    original_of(layer).data = original_of(layer).data.cos()


def reverse_strides(layer):
    layer.zero_grad()
    memory = original_of(layer).data
    original_of(layer).data = memory.as_strided(memory.shape, (1, 6, 24))


def narrow(layer):
    layer.zero_grad()
    original_of(layer).data = original_of(layer).data[:5]
    layer.bias.data = layer.bias.data[:5]
    parametrization = layer.parametrizations.weight[0]
    parametrization._u = parametrization._u[:5].clone()


def put_parameter(layer):
    layer.parametrizations.weight.original = nn.Parameter(torch.ones(6, 4, 3).cumsum(1))


def put_left_vector(layer):
    parametrization = layer.parametrizations.weight[0]
    parametrization._u = torch.ones_like(parametrization._u) / 6**0.5


def put_right_vector(layer):
    parametrization = layer.parametrizations.weight[0]
    parametrization._v = torch.ones_like(parametrization._v) / 12**0.5


def widen_left_vector(layer):
    parametrization = layer.parametrizations.weight[0]
    parametrization._u = parametrization._u.double()


def widen_right_vector(layer):
    parametrization = layer.parametrizations.weight[0]
    parametrization._v = parametrization._v.double()


def put_sigma(layer):
    parametrization = layer.parametrizations.weight[0]
    parametrization._sigma = torch.zeros_like(parametrization._sigma)


def assign(layer):
    layer.weight = torch.ones(6, 4, 3).cumsum(0)


def load(layer):
    layer.load_state_dict({key: value + 0.1 for key, value in layer.state_dict().items()})


def load_and_assign(layer):
    state = {key: value + 0.1 for key, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def cast_buffers(layer):
    for buffer in layer.buffers():
        buffer.data = buffer.data.half()
    with torch.no_grad():
        original_of(layer).mul_(1e5)


def cast_left_vector(layer):
    parametrization = layer.parametrizations.weight[0]
    parametrization._u.data = parametrization._u.data.bfloat16()


def cast_right_vector(layer):
    parametrization = layer.parametrizations.weight[0]
    parametrization._v.data = parametrization._v.data.bfloat16()


def want_gradients_of_buffers(layer):
    for tensor in layer.state_dict(keep_vars=True).values():
        tensor.requires_grad_()


def want_a_gradient_of_sigma(layer):
    layer.parametrizations.weight[0]._sigma.requires_grad_()


def register_a_scale(layer):
    three = nn.Parameter(torch.full((1,), 3.0))
    layer.parametrizations.weight[0].register_parameter("scale", three)


def iterate_more(layer):
    parametrization = layer.parametrizations.weight[0]
    parametrization.options = replace(parametrization.options, n_power_iterations=3)


def join_a_model(layer):
    apply_spectral_norm(layer, foreach=True)


def freeze(layer):
    original_of(layer).requires_grad_(False)


def unfreeze(layer):
    freeze(layer)
    train(layer)
    original_of(layer).requires_grad_(True)


def evaluate(layer):
    layer.eval()


def evaluate_and_go_on(layer):
    layer.eval()
    layer(x_of(layer))
    with torch.no_grad():
        layer(x_of(layer))
    layer.train()


def access_without_gradients(layer):
    with torch.no_grad():
        layer(x_of(layer))


def access_in_inference_mode(layer):
    with torch.inference_mode():
        layer(x_of(layer))


def access_while_evaluating(layer):
    with evaluating():
        layer(x_of(layer))


def widen(layer):
    layer.double()


def draw_anew(layer):
    torch.manual_seed(1)
    layer.parametrizations.weight[0].reset_parameters()


def refresh(layer):
    layer.parametrizations.weight[0].refresh(original_of(layer), 3)


def hook(layer):
    def doubled(module, args, output):
        return 2 * output

    layer.parametrizations.weight[0].register_forward_hook(doubled)


def stack(layer):
    parametrize.register_parametrization(layer, "weight", nn.Identity())


def autocast(layer):
    with torch.autocast("cpu", torch.bfloat16):
        train(layer)


def recompute(layer):
    output = checkpoint(layer, x_of(layer), use_reentrant=False)
    layer(x_of(layer))
    output.square().sum().backward()


def recompute_reentrantly(layer):
    output = checkpoint(layer, x_of(layer).requires_grad_(), use_reentrant=True)
    layer(x_of(layer))
    output.square().sum().backward()


def offload(layer):
    with torch.autograd.graph.save_on_cpu():
        train(layer)


def call_with_others(layer):
    others = {name: 2 * each for name, each in layer.named_parameters()}
    functional_call(layer, others, x_of(layer)).square().sum().backward()


def transform(layer):
    parameters = dict(layer.named_parameters())

    def loss(parameters):
        return functional_call(layer, parameters, x_of(layer)).square().sum()

    torch.func.grad(loss)(parameters)
    torch.func.jvp(loss, (parameters,), (parameters,))


def trace(layer):
    torch.jit.trace(layer, x_of(layer), check_trace=False)(x_of(layer))


def in_a_backward(layer):
    x = x_of(layer).requires_grad_()
    output = x.square()
    output.register_hook(lambda grad: grad + 0 * layer.weight.sum().detach())
    output.sum().backward()


def export(layer):
    torch.export.export(layer, (x_of(layer),)).module()(x_of(layer))


CHANGES = [
    step,
    fused_step,
    swap_data,
    reverse_strides,
    narrow,
    put_parameter,
    put_left_vector,
    put_right_vector,
    widen_left_vector,
    widen_right_vector,
    put_sigma,
    assign,
    load,
    load_and_assign,
    cast_buffers,
    cast_left_vector,
    cast_right_vector,
    want_gradients_of_buffers,
    want_a_gradient_of_sigma,
    register_a_scale,
    iterate_more,
    join_a_model,
    freeze,
    unfreeze,
    evaluate,
    evaluate_and_go_on,
    access_without_gradients,
    access_in_inference_mode,
    access_while_evaluating,
    widen,
    draw_anew,
    refresh,
    hook,
    stack,
    autocast,
    recompute,
    recompute_reentrantly,
    offload,
    call_with_others,
    transform,
    trace,
    in_a_backward,
    export,
]


def after(change, **options):
    layer = layer_of(**options)
    for do in (train, train, train, change, train, train):
        do(layer)
    grads = [each.grad for each in layer.parameters()]
    sigma = layer.parametrizations.weight[0].sigma
    return [*layer.state_dict().values(), *grads, sigma, layer.weight]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{}, {"bound": 0.5, "scale": 2.0}], ids=["plain", "bounded"])
def test_after_any_change_it_is_as_looked_at(change, options):
    standing = after(change, **options)
    with mock.patch.object(parametrization_module, "standing_access", return_value=None):
        looked_at = after(change, **options)
    for one, other in zip(standing, looked_at, strict=True):
        if one is None or other is None:
            assert one is other
        else:
            assert torch.equal(one, other)


def test_training_steps_after_the_first_make_it_again(backend):
    layer = layer_of(backend=backend)
    train(layer)
    standing = layer.parametrizations.weight[0].standing
    with mock.patch.object(standing, "_iterate", side_effect=standing._iterate) as iterate:
        for _ in range(3):
            step(layer)
            train(layer)
    assert iterate.call_count == 3


@pytest.mark.parametrize("options", [{"power_iter": "update"}, {"scale": "learned"}])
def test_what_is_to_be_looked_at_each_time(options):
    layer = layer_of(**options)
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
