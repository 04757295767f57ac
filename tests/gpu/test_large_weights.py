"""Weights of real size on a GPU, where every program takes many tiles; no synchronization."""

import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snorm_triton import reference, spectral_norm
from snorm_triton.functional import spectral_normalize, state_dtype

pytestmark = pytest.mark.gpu

# name: shape, dim, channels_last
WEIGHTS = {
    "linear": ((4096, 4096), 0, False),
    "linear-odd": ((1023, 4097), 0, False),
    "linear-wide": ((128, 40000), 0, False),
    "embedding": ((50257, 512), 0, False),
    "conv": ((1024, 1024, 3, 3), 0, False),
    "conv-channels-last": ((1024, 1024, 3, 3), 0, True),
    "conv-transpose": ((1024, 512, 4, 4), 1, False),
    "conv-transpose-k3": ((512, 256, 3, 3), 1, False),
    "conv-transpose-channels-last": ((1024, 512, 4, 4), 1, True),
}
# relative errors of (sigma, W_sn, dW): sums of up to 5e7 terms in float32, rounding to the dtype
TOLERANCES = {
    torch.float32: (1e-6, 1e-6, 1e-5),
    torch.float64: (1e-14, 1e-14, 1e-13),
    torch.bfloat16: (1e-6, 2**-8, 2**-7),
    torch.float16: (1e-6, 2**-11, 2**-10),
}


def random_case(name, dtype):
    shape, dim, channels_last = WEIGHTS[name]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    weight = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    state = state_dtype(weight)
    u = F.normalize(torch.randn(shape[dim], dtype=state), dim=0)
    v = F.normalize(torch.randn(weight.numel() // shape[dim], dtype=state), dim=0)
    return weight.requires_grad_(), u, v, dim


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.usefixtures("nan_filled_memory")
def test_kernels_match_the_reference(name, dtype, backend, relative_error):
    weight, u, v, dim = random_case(name, dtype)
    grad = torch.randn_like(weight)
    ours = spectral_normalize(weight, u, v, dim=dim, n_power_iterations=2, backend=backend)
    ours.weight_sn.backward(grad)
    exact = weight.detach().double().requires_grad_()
    expected = reference.spectral_normalize(exact, u, v, dim=dim, n_power_iterations=2)
    expected.weight_sn.backward(grad.double())
    sigma_error, forward_error, backward_error = TOLERANCES[dtype]
    assert relative_error(ours.sigma, expected.sigma) < sigma_error
    assert relative_error(ours.weight_sn, expected.weight_sn) < forward_error
    assert relative_error(weight.grad, exact.grad) < backward_error


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_evaluation_matches_the_reference(name, backend, relative_error):
    weight, u, v, dim = random_case(name, torch.float32)
    warm = spectral_normalize(weight, u, v, dim=dim, n_power_iterations=5, backend=backend)
    u, v = 0.5 * warm.u, 2 * warm.v
    ours = spectral_normalize(weight, u, v, dim=dim, n_power_iterations=0, backend=backend)
    expected = reference.spectral_normalize(weight, u, v, dim=dim, n_power_iterations=0)
    assert relative_error(ours.sigma, expected.sigma) < 1e-6
    assert relative_error(ours.weight_sn, expected.weight_sn) < 1e-6


def set_sync_debug_mode(mode):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode(mode)


@contextmanager
def synchronization_refused():
    before = torch.cuda.get_sync_debug_mode()
    try:
        set_sync_debug_mode("error")
        yield
    finally:
        set_sync_debug_mode(before)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_nothing_synchronizes_with_the_host(backend):
    layer = spectral_norm(nn.Conv2d(64, 64, 3), backend=backend)
    layer(torch.randn(1, 64, 3, 3)).sum().backward()  # the first forward, which looks at the weight
    _ = layer.weight
    with synchronization_refused():
        layer.weight.square().sum().backward()
        layer.eval()
        _ = layer.weight
