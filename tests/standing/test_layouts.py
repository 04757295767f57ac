"""An access that is made again gives what a layer's first access would, whatever is launched."""

import copy

import pytest
import torch
from torch import nn

from snorm_triton import spectral_norm

MAKE = {
    "Linear": lambda: nn.Linear(5, 3),
    "Linear, many rows": lambda: nn.Linear(70, 40),
    "Conv2d": lambda: nn.Conv2d(3, 5, 3),
    "Conv2d, channels_last": lambda: nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(6, 4, 3),
    "depthwise": lambda: nn.Conv1d(4, 4, 3, groups=4),
}
OPTIONS = {
    "": {},
    "two iterations": {"n_power_iterations": 2},
    "three iterations": {"n_power_iterations": 3},
    "bound": {"bound": 0.5},
    "scale": {"scale": 2.0},
}


@pytest.fixture(params=[False, True], ids=["", "of no small weight"])
def no_weight_is_small(request, monkeypatch):
    if request.param:
        for module in ("normalize", "gradient"):
            monkeypatch.setattr(f"snorm_triton.kernels.{module}.small_tile", lambda *_: None)


CASES = [
    *((make, "", torch.float32) for make in MAKE),
    *(("Conv2d, channels_last", options, torch.float32) for options in OPTIONS if options),
    *((make, "bound", torch.bfloat16) for make in ("Linear", "ConvTranspose1d")),
    ("Linear, many rows", "scale", torch.float64),
]


@pytest.mark.parametrize(("make", "options", "dtype"), CASES)
@pytest.mark.usefixtures("no_weight_is_small")
def test_accesses_come_out_as_the_first(make, options, dtype, backend):
    layer = spectral_norm(MAKE[make]().to(dtype), backend=backend, **OPTIONS[options])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    original = layer.parametrizations.weight.original
    for _ in range(3):
        optimizer.step()
        new = copy.deepcopy(layer)  # which makes no access again
        results = []
        for each in (layer, new):
            each.zero_grad()
            weight = each.weight
            (weight * torch.linspace(-1, 1, weight.numel()).view(weight.shape)).sum().backward()
            parametrizations = each.parametrizations.weight
            state = parametrizations[0]._u, parametrizations[0]._v, parametrizations[0]._sigma
            results.append((weight, parametrizations.original.grad, *state))
        assert all(map(torch.equal, *results))
        assert results[0][0].stride() == original.stride()
    assert layer.parametrizations.weight[0].standing is not None
