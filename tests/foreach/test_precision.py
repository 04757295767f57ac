"""Half and double precision: a model's weights together are those of one by one."""

import copy

import pytest
import torch
from torch import nn

from snorm_triton import apply_spectral_norm, sigmas
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
        for launcher in ("together.of_one_weight", "together_backward.of_one_weight"):
            monkeypatch.setattr(f"snorm_triton.kernels.{launcher}", refuse)


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


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # as dynamo looks at inputs
@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_weights_of_two_dtypes_that_come_out_in_one(compiled, backend, relative_error):
    """Under autocast a float32 weight comes out in bfloat16, as the others lie."""
    float32, bfloat16 = torch.float32, torch.bfloat16
    layers = [nn.Linear(size + 2, size, dtype=float32) for size in (3, 6)]
    layers += [nn.Linear(size + 1, size, dtype=bfloat16) for size in (4, 7)]
    options = {"autocast_output": True, "backend": backend}
    model = apply_spectral_norm(Weights(layers), foreach=True, **options)
    twin = apply_spectral_norm(Weights([copy.deepcopy(layer) for layer in layers]), foreach=False)
    twin.load_state_dict(model.state_dict())
    twin.double()
    directions = [torch.randn_like(original_of(layer), dtype=bfloat16) for layer in model.layers]
    with torch.autocast(original_of(layers[0]).device.type, bfloat16):
        weights = (torch.compile(model, backend="aot_eager") if compiled else model)()
        torch.autograd.backward(weights, directions)
    expected = twin()
    torch.autograd.backward(expected, [direction.double() for direction in directions])
    rounding = 2 * torch.finfo(bfloat16).eps
    for ours, theirs in zip(weights, expected, strict=True):
        assert ours.dtype == bfloat16
        assert relative_error(ours, theirs) < rounding
    for ours, theirs in zip(model.layers, twin.layers, strict=True):
        exact = rounding if original_of(ours).dtype == bfloat16 else 1e-5
        assert relative_error(original_of(ours).grad, original_of(theirs).grad) < exact
