"""Half and double precision: a model's weights together are those of one by one."""

import pytest
import torch
from torch import nn

from snorm_triton import sigmas
from whole_models import original_of, pair

DTYPES = (torch.float16, torch.bfloat16, torch.float64)
MAKERS = {
    "Linear": lambda size: nn.Linear(size + 2, size),
    "Conv2d": lambda size: nn.Conv2d(size, size + 2, 3),
    "ConvTranspose2d": lambda size: nn.ConvTranspose2d(size, size + 2, (2, 3)),
}


class Weights(nn.Module):
    """Returns the weights of its layers: no half precision but theirs is computed with."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self):
        return [layer.weight for layer in self.layers]


@pytest.fixture
def one_by_one_refused(backend, monkeypatch):
    """The kernels for many weights may leave no weight to those for one."""

    def refuse(*args):
        raise AssertionError("taken one by one")

    if backend == "triton":
        for launcher in ("normalize", "rescale_backward"):
            monkeypatch.setattr(f"snorm_triton.kernels.together.{launcher}", refuse)


@pytest.mark.usefixtures("one_by_one_refused")
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_sigmas_and_gradients_are_those_of_one_by_one(kind, dtype, backend, relative_error):
    layers = [MAKERS[kind](size).to(dtype) for size in (3, 5, 8)]
    together, one_by_one = pair(Weights(layers), backend=backend)
    directions = [torch.randn_like(original_of(layer)) for layer in one_by_one.layers]
    for model in (together, one_by_one):
        for _ in range(2):
            weights = model()
        torch.autograd.backward(weights, directions)
    # Kernels compute in float32 at least: half precision rounds their results, nothing before.
    exact = 1e-13 if dtype == torch.float64 else 1e-5
    rounding = max(exact, 2 * torch.finfo(dtype).eps)
    for ours, theirs in zip(together.layers, one_by_one.layers, strict=True):
        assert original_of(ours).grad.dtype == dtype
        assert relative_error(original_of(ours).grad, original_of(theirs).grad) < rounding
    for ours, theirs in zip(together(), one_by_one(), strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, theirs) < rounding
    for name, sigma in sigmas(together).items():
        assert sigma.dtype == torch.promote_types(dtype, torch.float32)
        assert relative_error(sigma, sigmas(one_by_one)[name]) < exact
