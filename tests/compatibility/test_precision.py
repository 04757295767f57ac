"""Half precision and autocast."""

import pytest
import torch
from torch import nn


@pytest.mark.promise(
    "`.half()`, `.bfloat16()`: u and v stay float32",
    torch=("u and v are cast", AssertionError),
)
@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16])
def test_half(sn, cast):
    layer = cast(sn.spectral_norm(nn.Linear(6, 4)))
    assert sn.weight(layer).dtype in (torch.float16, torch.bfloat16)
    for vector in sn.vectors(layer):
        assert vector.dtype == torch.float32


@pytest.mark.promise("`.double()`, `.to(dtype)` and back, in any order")
def test_there_and_back(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4)).double().to(torch.float32).to("cpu")
    assert sn.weight(layer).dtype == torch.float32
    for vector in sn.vectors(layer):
        assert vector.dtype == torch.float32


@pytest.mark.promise("Autocast on the CPU: u, v and sigma are those of float32")
def test_autocast(sn):
    layers = [sn.spectral_norm(nn.Linear(6, 4)) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        weight = sn.weight(layers[0])
    torch.testing.assert_close(weight.float(), sn.weight(layers[1]), rtol=1e-6, atol=1e-6)


@pytest.mark.promise(
    "The weight in autocast's dtype, without a cast after it: `autocast_output=True`", torch="none"
)
def test_autocast_output(sn):
    layer = sn.spectral_norm(nn.Linear(6, 4), autocast_output=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.bfloat16
