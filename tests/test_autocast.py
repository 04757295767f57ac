"""Autocast: the estimate stays out of it, and the weight comes in its dtype if asked for."""

import pytest
import torch
from torch import nn

from snorm_triton import apply_spectral_norm, spectral_norm


def state_of(layer):
    parametrization = layer.parametrizations.weight[0]
    return [parametrization._u.clone(), parametrization._v.clone()]


def layer_of(backend="auto", **options):
    torch.manual_seed(0)
    return spectral_norm(nn.Linear(6, 4), backend=backend, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast_output", [False, True])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_u_v_and_sigma_are_those_of_float32(backend, autocast_output, training, dtype):
    plain = layer_of(backend).train(training)
    layer = layer_of(backend, autocast_output=autocast_output).train(training)
    expected = plain.weight
    before = state_of(layer)
    with torch.autocast(expected.device.type, dtype):
        weight = layer.weight
    assert weight.dtype == (dtype if autocast_output else torch.float32)
    # Triton's interpreter cuts what it stores in bfloat16, where a GPU rounds it.
    tolerance = 2**-7 if autocast_output else 0
    torch.testing.assert_close(weight.float(), expected, rtol=tolerance, atol=0)
    assert torch.equal(*(layer.parametrizations.weight[0].sigma for layer in (layer, plain)))
    for one, other in zip(state_of(layer), state_of(plain), strict=True):
        assert torch.equal(one, other)
    assert training != all(map(torch.equal, state_of(layer), before))


def test_the_gradient_is_float32_and_that_of_a_cast(backend):
    plain, layer = layer_of(backend), layer_of(backend, autocast_output=True)
    expected = plain.weight
    grad = torch.randn_like(expected).bfloat16()
    expected.bfloat16().backward(grad)
    with torch.autocast(expected.device.type, torch.bfloat16):
        layer.weight.backward(grad)
    gradient = layer.parametrizations.weight.original.grad
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, plain.parametrizations.weight.original.grad)


def nodes_of(output):
    """The names of the nodes of a graph, once each."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return sorted(node.name() for node in seen)


@pytest.mark.parametrize(("autocast_output", "casts"), [(False, 2), (True, 1)])
def test_no_cast_of_the_weight_follows(autocast_output, casts):
    layer = layer_of(autocast_output=autocast_output)
    with torch.autocast("cpu", torch.bfloat16):
        assert nodes_of(layer(torch.randn(3, 6))).count("ToCopyBackward0") == casts  # the bias's


@pytest.mark.parametrize("foreach", [False, True], ids=["each", "foreach"])
def test_outside_autocast_a_prepared_weight_is_float32(foreach):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self):
            with torch.autocast("cpu", enabled=False):
                outside = self.layer.weight
            return self.layer.weight, outside

    model = apply_spectral_norm(Model(), foreach=foreach, autocast_output=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside, outside = model()
    assert inside.dtype == torch.bfloat16
    assert outside.dtype == torch.float32


def test_other_dtypes_stay_as_they_are():
    layer = layer_of(autocast_output=True).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.float64


def test_compiled_code_returns_autocasts_dtype():
    torch.compiler.reset()
    layer, plain = layer_of(autocast_output=True), layer_of()
    compiled = torch.compile(lambda: layer.weight, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(), plain.weight.bfloat16())
    assert compiled().dtype == torch.float32
