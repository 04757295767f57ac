"""What torch has not: bounds, scales, a penalty, and the convolution's own norm."""

import copy

import pytest
import torch
from torch import nn

from snorm_triton import apply_spectral_norm, fold, lipschitz, spectral_norm, spectral_penalty

NONE = "none"
SHAPE = (3, 8, 8)


@pytest.mark.promise("A bound: divide only where sigma exceeds it, `bound=`", torch=NONE)
def test_bound():
    small, large = nn.Linear(6, 6), nn.Linear(6, 6)
    with torch.no_grad():
        small.weight.copy_(torch.eye(6) / 2)
        large.weight.copy_(torch.eye(6) * 2)
    for layer in (small, large):
        spectral_norm(layer, bound=0.8)
    torch.testing.assert_close(small.weight, torch.eye(6) / 2)
    torch.testing.assert_close(large.weight, torch.eye(6) * 0.8)


@pytest.mark.promise("A scale, `scale=2.0`", torch=NONE)
def test_scale():
    layer = spectral_norm(nn.Linear(6, 4), n_power_iterations=30, scale=2.0)
    norm = torch.linalg.matrix_norm(layer.weight.detach(), 2).item()
    assert norm == pytest.approx(2, rel=1e-4)


@pytest.mark.promise(
    'A learned scale, which leaves the outputs as they were: `scale="learned"`', torch=NONE
)
def test_learned_scale():
    layer = nn.Linear(6, 4)
    x = torch.randn(2, 6)
    before = layer(x)
    spectral_norm(layer, scale="learned").eval()
    torch.testing.assert_close(layer(x), before, rtol=1e-3, atol=1e-3)
    layer(x).sum().backward()
    assert layer.parametrizations.weight[0].scale.grad is not None


@pytest.mark.promise("A penalty on the norms of weights that stay as they are", torch=NONE)
def test_penalty():
    model = apply_spectral_norm(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), bound=float("inf"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = spectral_penalty(model).item()
    for _ in range(5):
        optimizer.zero_grad()
        (0 * model(torch.randn(2, 6)).sum() + spectral_penalty(model)).backward()
        optimizer.step()
    assert spectral_penalty(model).item() < before / 2


def convolution(**options):
    return spectral_norm(nn.Conv2d(3, 5, 3, 2, 1), operator="convolution", **options)


@pytest.mark.promise(
    "The norm of a strided, padded convolution itself, after some iterations: "
    '`operator="convolution"`',
    torch=NONE,
)
def test_norm_of_a_convolution():
    layer = convolution(input_shape=SHAPE, n_power_iterations=30).eval()
    assert lipschitz.conv_norm(layer, SHAPE).item() == pytest.approx(1, rel=1e-2)


@pytest.mark.promise("It takes the shape of images from the first input", torch=NONE)
def test_shape_of_the_first_input():
    layer = convolution()
    layer(torch.randn(2, *SHAPE))
    assert layer.parametrizations.weight[0]._v.shape == SHAPE


@pytest.mark.promise("Its state dict, `copy.deepcopy` and `fold`", torch=NONE)
def test_copies_of_a_convolution():
    layer, other = convolution(input_shape=SHAPE), convolution(input_shape=SHAPE)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, *SHAPE)
    expected = layer.eval()(x)
    twin, folded = copy.deepcopy(layer), copy.deepcopy(layer)
    fold(folded)
    for each in (other.eval(), twin, folded):
        torch.testing.assert_close(each(x), expected)


@pytest.mark.promise("It in `torch.compile(fullgraph=True)`", torch=NONE)
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:The .grad attribute:UserWarning")
def test_compiled_convolution():
    layer = convolution(input_shape=SHAPE)
    twin, x = copy.deepcopy(layer), torch.randn(2, *SHAPE)
    torch.compiler.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), layer(x))
