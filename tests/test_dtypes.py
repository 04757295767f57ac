"""u, v and sigma stay at least float32, whatever becomes of the module."""

import pytest
import torch
from torch import nn

from snorm_triton import spectral_norm
from snorm_triton.reference import largest_singular_value

HALF = (torch.float16, torch.bfloat16)


def state(layer):
    parametrization = layer.parametrizations.weight[0]
    return parametrization._u, parametrization._v, parametrization._sigma


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_keeps_the_exact_state(dtype, backend):
    layer = spectral_norm(nn.Conv2d(3, 5, 3), backend=backend)
    before = [x.clone() for x in state(layer)]
    layer.to(dtype)
    for now, then in zip(state(layer), before, strict=True):
        assert torch.equal(now, then)
    assert layer.weight.dtype == dtype
    top = largest_singular_value(layer.weight.float()).item()
    assert top == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("dtype", HALF)
def test_a_half_weight_can_be_registered_and_trained(dtype, backend):
    layer = spectral_norm(nn.Linear(6, 5).to(dtype), backend=backend)
    assert all(x.dtype == torch.float32 for x in state(layer))
    layer.weight.float().square().sum().backward()
    assert layer.parametrizations.weight.original.grad.dtype == dtype


@pytest.mark.parametrize("dtype", HALF)
def test_without_stable_fp32_the_state_follows_the_weight(dtype, backend):
    layer = spectral_norm(nn.Linear(6, 5), stable_fp32=False, backend=backend).to(dtype)
    assert all(x.dtype == dtype for x in state(layer))
    assert largest_singular_value(layer.weight.float()).item() == pytest.approx(1, abs=3e-2)


@pytest.mark.parametrize("dtype", HALF)
def test_without_stable_fp32_a_half_weight_has_a_half_state(dtype):
    layer = spectral_norm(nn.Linear(6, 5).to(dtype), stable_fp32=False)
    assert all(x.dtype == dtype for x in state(layer))


def test_double_and_back(backend):
    layer = spectral_norm(nn.Linear(6, 5), backend=backend).double()
    assert all(x.dtype == torch.float64 for x in state(layer))
    assert layer.weight.dtype == torch.float64
    layer.half().float()
    assert all(x.dtype == torch.float32 for x in state(layer))
    _ = layer.weight


@pytest.mark.parametrize("assign", [True, False])
def test_a_half_checkpoint_leaves_the_state_float32(assign):
    trained = spectral_norm(nn.Linear(6, 5))
    half = {key: value.half() for key, value in trained.state_dict().items()}
    layer = spectral_norm(nn.Linear(6, 5))
    layer.load_state_dict(half, assign=assign)
    assert all(x.dtype == torch.float32 for x in state(layer))
    _ = layer.weight


def test_autocast_leaves_the_estimate_alone(backend):
    # Of a ConvTranspose: its products are bmm, which autocast would take to bfloat16.
    layer = spectral_norm(nn.ConvTranspose2d(4, 5, 3), backend=backend)
    twin = spectral_norm(nn.ConvTranspose2d(4, 5, 3), backend=backend)
    twin.load_state_dict(layer.state_dict())
    original, twin_original = (x.parametrizations.weight.original for x in (layer, twin))
    grad = torch.randn_like(original)
    with torch.autocast(layer.bias.device.type, torch.bfloat16):
        weight = layer.weight
        (grad_weight,) = torch.autograd.grad(weight, original, grad)
    assert weight.dtype == torch.float32
    expected = twin.weight
    assert torch.equal(weight, expected)
    assert torch.equal(grad_weight, torch.autograd.grad(expected, twin_original, grad)[0])


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_layer_has_a_real_sigma(dtype):
    layer = spectral_norm(nn.Linear(4, 3, dtype=torch.complex64)).to(dtype)
    _ = layer.weight
    assert not state(layer)[2].is_complex()


def test_complex_layers_train():
    layer = spectral_norm(nn.Linear(4, 3, dtype=torch.complex64))
    layer(torch.randn(2, 4, dtype=torch.complex64)).abs().sum().backward()
    assert state(layer)[2].dtype == torch.float32
    for _ in range(60):
        weight = layer.weight
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=1e-4)
