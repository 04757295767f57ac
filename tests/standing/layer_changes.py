"""What becomes of a layer between two accesses of training."""

from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from snorm_triton import apply_spectral_norm
from snorm_triton.parametrizations.base import evaluating
from standing_layers import original_of, step, train, x_of


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
